"""What docs/deploy.md shows works: a compiled model runs with TVM's runtime alone, from Python and from C++."""

import importlib.util
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

from sparsetvm.build.cc_args import cc_args

ROOT = Path(__file__).parents[2]
SHAPE = (4, 64)


@pytest.fixture(scope="module")
def weight():
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((64, 32)).astype(np.float32)
    return dense * (rng.random(dense.shape) < 0.1)


def compiled(weight, folder, element):
    import sparsetvm

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        "tiny",
        [helper.make_tensor_value_info("x", element, SHAPE)],
        [helper.make_tensor_value_info("y", element, (4, 32))],
        [numpy_helper.from_array(weight.astype(helper.tensor_dtype_to_np_dtype(element)), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "tiny.onnx")
    sparsetvm.compile(folder / "tiny.onnx", folder / "model.so", threads=1, log_dir=folder / "logs")
    return folder / "model.so"


@pytest.fixture(scope="module")
def library(weight, tmp_path_factory):
    return compiled(weight, tmp_path_factory.mktemp("deploy"), TensorProto.FLOAT)


@pytest.fixture(scope="module")
def half_library(weight, tmp_path_factory):
    return compiled(weight, tmp_path_factory.mktemp("half"), TensorProto.FLOAT16)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)


def check(y, x, weight):
    np.testing.assert_allclose(y, x @ weight, rtol=1e-4, atol=1e-5)


def check_half(y, x, weight):
    assert y.dtype == np.float16
    exact = x.astype(np.float16).astype(np.float32) @ weight.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(y, exact, rtol=1e-3, atol=1e-5)


def test_python_example_runs_a_float16_model(half_library, x, weight, tmp_path):
    np.save(tmp_path / "in.npy", x.astype(np.float16))
    program = ROOT / "docs" / "examples" / "run.py"
    subprocess.run([sys.executable, program, half_library, tmp_path / "in.npy", tmp_path / "out.npy"], check=True)
    check_half(np.load(tmp_path / "out.npy"), x, weight)


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


def test_cpp_example_builds_runs_as_documented_and_can_be_moved(library, half_library, x, weight, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no g++ on this machine")
    command = tmp_path / "bin" / "sparsetvm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sparsetvm "$@"\n')
    command.chmod(0o755)
    text = (ROOT / "docs" / "deploy.md").read_text()
    block = re.search(r"## From C\+\+.*?```sh\n(.*?)```", text, re.S)
    assert block is not None
    script, run = block[1].rsplit("\n./run ", 1)
    assert run.startswith("model.so")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    script += " -Wl,-rpath,'$ORIGIN'"  # as in the recipe of a container
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True, env={**os.environ, "PATH": path})
    command = [tmp_path / "run", library, "cpu", *map(str, SHAPE)]
    done = subprocess.run(command, input=x.tobytes(), stdout=subprocess.PIPE, check=True)
    check(np.frombuffer(done.stdout, np.float32).reshape(4, 32), x, weight)
    command = [tmp_path / "run", half_library, "cpu", "f16", *map(str, SHAPE)]
    done = subprocess.run(command, input=x.astype(np.float16).tobytes(), stdout=subprocess.PIPE, check=True)
    check_half(np.frombuffer(done.stdout, np.float16).reshape(4, 32), x, weight)
    for package, name in (("tvm", "libtvm_runtime.so"), ("tvm_ffi", "libtvm_ffi.so")):
        folder = Path(importlib.util.find_spec(package).submodule_search_locations[0], "lib")
        assert f"-L{folder}" in cc_args()
        shutil.copy(folder / name, tmp_path)
    moved = {"LD_LIBRARY_PATH": str(tmp_path)}
    tracing = {**moved, "LD_TRACE_LOADED_OBJECTS": "1"}
    traced = subprocess.run([tmp_path / "run"], env=tracing, stdout=subprocess.PIPE, check=True)
    assert set(re.findall(r"=> (/\S+tvm\S+)", traced.stdout.decode())) == {
        str(tmp_path / name) for name in ("libtvm_runtime.so", "libtvm_ffi.so")
    }
    command = [tmp_path / "run", library, "cpu", *map(str, SHAPE)]
    done = subprocess.run(command, input=x.tobytes(), stdout=subprocess.PIPE, check=True, env=moved)
    check(np.frombuffer(done.stdout, np.float32).reshape(4, 32), x, weight)


def test_sparsetvm_load_gives_the_same(library, x, weight):
    import sparsetvm

    with sparsetvm.load(library) as module:
        check(module(x), x, weight)


def test_per_layer_times_name_the_layers_and_leave_the_module_usable(library, x, weight):
    import sparsetvm
    from sparsetvm.core.manifest import read_manifest

    report = sparsetvm.bench(library, against=(), seconds=0.01, per_layer=True)
    assert [time.kernel for time in report.per_layer] == [k["symbol"] for k in read_manifest(library)[0]["kernels"]]
    assert "layer" in [time.name for time in report.per_layer]
    assert sum(time.share for time in report.per_layer) == pytest.approx(1.0)
    assert report.latency_ms.per_second > 0
    with sparsetvm.load(library) as module:
        assert module.per_layer(seconds=0.001)
        check(module(x), x, weight)


def test_separate_weights_give_the_same_and_are_looked_after(library, x, tmp_path):
    import sparsetvm
    from sparsetvm.errors import ModelError

    sparsetvm.compile(library.parent / "tiny.onnx", tmp_path / "m.so", threads=1, weights="separate", log_dir=tmp_path)
    weights = tmp_path / "m.so.weights"
    with sparsetvm.load(library) as whole, sparsetvm.load(tmp_path / "m.so") as parted:
        np.testing.assert_array_equal(whole(x), parted(x))
        assert parted.per_layer(seconds=0.001)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="SHA-256"):
        sparsetvm.load(tmp_path / "m.so")
    weights.unlink()
    with pytest.raises(ModelError, match="not there"):
        sparsetvm.load(tmp_path / "m.so")
