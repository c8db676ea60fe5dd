"""What docs/deploy.md shows works: a compiled model runs with TVM's runtime alone, from Python and from C++."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[2]
SHAPE = (4, 64)


@pytest.fixture(scope="module")
def weight():
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((64, 32)).astype(np.float32)
    return dense * (rng.random(dense.shape) < 0.1)


@pytest.fixture(scope="module")
def library(weight, tmp_path_factory):
    import sparsetvm

    folder = tmp_path_factory.mktemp("deploy")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (4, 32))],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "tiny.onnx")
    sparsetvm.compile(folder / "tiny.onnx", folder / "model.so", threads=1, log_dir=folder / "logs")
    return folder / "model.so"


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)


def check(y, x, weight):
    np.testing.assert_allclose(y, x @ weight, rtol=1e-4, atol=1e-5)


def test_python_example_runs_without_the_compiler(library, x, weight, tmp_path):
    np.save(tmp_path / "in.npy", x)
    program = ROOT / "docs" / "examples" / "run.py"
    probe = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0]); print(open('/proc/self/maps').read())"
    )
    command = [sys.executable, "-c", probe, program, library, tmp_path / "in.npy", tmp_path / "out.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    check(np.load(tmp_path / "out.npy"), x, weight)
    assert "libtvm_runtime" in done.stdout
    assert "libtvm_compiler" not in done.stdout


def test_cpp_example_builds_and_runs_as_documented(library, x, weight, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no g++ on this machine")
    text = (ROOT / "docs" / "deploy.md").read_text()
    block = re.search(r"## From C\+\+.*?```sh\n(.*?)```", text, re.S)
    assert block is not None
    script, run = block[1].rsplit("\n./run ", 1)
    assert run.startswith("model.so")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True, env={**os.environ, "PATH": path})
    command = [tmp_path / "run", library, "cpu", *map(str, SHAPE)]
    done = subprocess.run(command, input=x.tobytes(), stdout=subprocess.PIPE, check=True)
    check(np.frombuffer(done.stdout, np.float32).reshape(4, 32), x, weight)


def test_sparsetvm_load_gives_the_same(library, x, weight):
    import sparsetvm

    with sparsetvm.load(library) as module:
        check(module(x), x, weight)
