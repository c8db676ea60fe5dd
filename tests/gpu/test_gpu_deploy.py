"""Libraries where they are used: without a compiler, from C++, compiled on another machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gpu_tools import Compiled, compiled, needs_gpu
from models import conv_net

import sparsetvm
from sparsetvm.core.cuda_runtime import load_cuda_runtime
from sparsetvm.core.manifest import manifest_path
from sparsetvm.core.target import parse_target

pytestmark = needs_gpu
ROOT = Path(__file__).parents[2]
SHAPE = (2, 3, 20, 20)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Compiled:
    return compiled(conv_net(batch=2, size=20, width=32), tmp_path_factory.mktemp("deploy"))


def test_library_runs_in_a_fresh_process_without_a_compiler(library: Compiled, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", **library.inputs)
    code = (
        # TVM's FFI imports torch where there is one, and torch loads CUDA's compiler.
        "import sys; sys.modules['torch'] = None\n"
        "import numpy, sparsetvm\n"
        "module = sparsetvm.load(sys.argv[1])\n"
        "numpy.savez(sys.argv[3], **module.run(dict(numpy.load(sys.argv[2]))))\n"
        "print(open('/proc/self/maps').read())\n"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PATH": "", "CUDA_HOME": "", "TVM_USE_RUNTIME_LIB": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-c", code, str(library.path), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    library.check(dict(np.load(tmp_path / "out.npz")))
    assert "libtvm_runtime_cuda" in done.stdout
    assert "libtvm_compiler" not in done.stdout
    assert "libnvrtc" not in done.stdout


def test_cpp_example_builds_and_runs_as_documented(library: Compiled, tmp_path: Path) -> None:
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for tool in ("g++", "python", "tvm-ffi-config"):
        if shutil.which(tool, path=search) is None:
            pytest.skip(f"no {tool} on this machine")
    block = re.search(r"For a GPU, link.*?```sh\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.DOTALL)
    assert block is not None
    script, run = block[1].rsplit("\n./run ", 1)
    assert run.startswith("model.so cuda 1 1 8 8 ")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    documented = "CUDA_LIB=/usr/local/cuda/lib64"
    assert documented in script
    script = script.replace(documented, f"CUDA_LIB={folder_of_cudart()}")
    built = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env={**os.environ, "PATH": search}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (x,) = library.inputs.values()
    assert x.shape == SHAPE
    command = [tmp_path / "run", library.path, "cuda", *map(str, SHAPE)]
    done = subprocess.run(command, input=x.tobytes(), capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()
    ((name, expected),) = library.expected.items()
    library.check({name: np.frombuffer(done.stdout, np.float32).reshape(expected.shape)})


def folder_of_cudart() -> str:
    load_cuda_runtime(to_run=True)
    found = re.search(r"(/\S*)/libcudart\.so\.13", Path("/proc/self/maps").read_text())
    assert found is not None
    return os.fspath(found[1])


def test_library_compiled_for_the_architecture_alone_computes_the_same(tmp_path: Path) -> None:
    if parse_target("cuda").isa != "sm_90":
        pytest.skip(f"this GPU is {parse_target('cuda').isa}, not sm_90")
    library = compiled(conv_net(batch=2, size=20, width=32), tmp_path, "cuda,sm_90")
    assert not json.loads(manifest_path(library.path).read_text())["target"]["host"]
    with sparsetvm.load(library.path) as module:
        for _ in range(2):
            library.check(module.run(library.inputs))
