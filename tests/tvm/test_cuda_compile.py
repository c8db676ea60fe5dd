"""Networks compiled for a GPU on a machine without one: machine code in the library, one CUDA graph, no source text."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import onnx
import pytest
from cuda_tools import architectures, needs_c_compiler, needs_cuda_compiler
from float16 import to_float16
from models import ModelBuilder, mlp
from sparsetvm.schedules import base
from sparsetvm.schedules.cuda.copy import copy_launch
from sparsetvm.schedules.cuda.launch import Launch

import sparsetvm
from sparsetvm.build.choose import choose_dense
from sparsetvm.build.compile import build_executable
from sparsetvm.build.fatbin import cubins_in, fatbin
from sparsetvm.build.network import Network
from sparsetvm.core.manifest import STATIC_MAIN
from sparsetvm.core.target import parse_target
from sparsetvm.errors import EnvironmentProblem, SparseTvmError
from sparsetvm.measure import nvcc
from sparsetvm.rewrite.prepare import prepare

pytestmark = [needs_cuda_compiler, needs_c_compiler]
H200 = parse_target("cuda,sm_90")


@pytest.fixture(autouse=True)
def _test_kernel_and_own_cache(monkeypatch, tmp_path_factory):
    """Products run on the kernel of this folder alone; compiled kernels stay among the tests."""
    monkeypatch.setattr(base, "_TEMPLATES", {"cuda.test_rows": ("cuda_templates", "Rows")})
    base.template.cache_clear()
    folder = tmp_path_factory.getbasetemp() / "cubin"
    monkeypatch.setattr(nvcc, "cubin_folder", lambda: folder)
    yield
    base.template.cache_clear()


def network() -> ModelBuilder:
    """Two products with a residual, operators that TVM compiles between them, and two outputs, one of them TVM's."""
    builder = ModelBuilder("net")
    x = builder.input("x", (2, 32))
    h = builder.relu(builder.gemm(x, 32, 48, sparsity=0.9))
    waves = builder.op("Sin", builder.op("Tanh", h))
    y = builder.op("Add", builder.gemm(waves, 48, 48, sparsity=0.5), h)
    return builder.output(builder.gemm(y, 48, 10), waves)


def executable_text(model: onnx.ModelProto, folder: Path) -> str:
    """The virtual machine's code of the network."""
    onnx.save(model, folder / "m.onnx")
    prepared = prepare(folder / "m.onnx", H200)
    network = Network(prepared.graph, prepared.tasks, choose_dense(prepared.tasks, H200))
    return build_executable([network], H200)[0].as_text()


def function(text: str, name: str) -> list[str]:
    """Functions called by one function of the virtual machine's code, in order."""
    body = text.split(f"@{name}:\n", 1)[1].split("\n\n", 1)[0]
    return [line.split()[1] for line in body.splitlines() if line.strip().startswith("call")]


def test_library_holds_machine_code_of_the_architecture_and_no_source(tmp_path):
    library = tmp_path / "net.so"
    sparsetvm.compile(network().save(tmp_path / "net.onnx"), library, target="cuda,sm_90", log_dir=tmp_path)
    code = library.read_bytes()
    assert architectures(code) == {90}
    assert b"__global__" not in code


def test_cuda_tools_find_the_kernels_of_a_library(tmp_path):
    library = tmp_path / "net.so"
    sparsetvm.compile(network().save(tmp_path / "net.onnx"), library, target="cuda,sm_90", log_dir=tmp_path)
    code = library.read_bytes()
    cubins = Counter(cubins_in(code))
    assert set(cubins.values()) == {2}  # TVM's, and those in the section
    assert fatbin(cubins, "sm_90") in code
    if cuobjdump := shutil.which("cuobjdump"):
        listed = subprocess.run([cuobjdump, "-lelf", str(library)], capture_output=True, text=True, check=True).stdout
        assert listed.count(".sm_90.cubin") == len(cubins)


def test_whole_network_is_one_graph_when_tensors_stay_in_place(tmp_path):
    text = executable_text(network().model(), tmp_path)
    outside = [name for name in function(text, STATIC_MAIN) if not name.startswith("vm.builtin.")]
    assert outside == []
    captured = function(text, f"{STATIC_MAIN}_cuda_graph_capture")
    launches = [name for name in captured if not name.startswith("vm.builtin.")]
    assert len([name for name in launches if name.startswith("sparsetvm_launch_")]) == 4  # three products and a copy
    assert len(launches) == 5


def test_float16_inputs_and_outputs_are_converted_inside_the_graph(tmp_path):
    text = executable_text(to_float16(mlp((32, 48, 10), batch=2).model()), tmp_path)
    outside = [name for name in function(text, STATIC_MAIN) if not name.startswith("vm.builtin.")]
    assert outside == []
    captured = function(text, f"{STATIC_MAIN}_cuda_graph_capture")
    launches = [name for name in captured if not name.startswith("vm.builtin.")]
    assert [name.rsplit("_", 1)[0] for name in launches] == ["sparsetvm_launch"] * 4  # two products, two conversions


def test_tables_that_are_indexed_are_inside_the_graph(tmp_path):
    builder = ModelBuilder("ids")
    ids = builder.input("ids", (2, 1), onnx.TensorProto.INT64)
    table = builder.const(builder.weight((50, 32), 32))
    rows = builder.op("GatherND", table, ids)
    rows = builder.op("ScatterElements", rows, ids, builder.const(builder.weight((2, 1), 1)), axis=1)
    text = executable_text(builder.output(builder.gemm(rows, 32, 10)).model(), tmp_path)
    assert [name for name in function(text, STATIC_MAIN) if not name.startswith("vm.builtin.")] == []
    assert len(function(text, f"{STATIC_MAIN}_cuda_graph_capture")) > 3


def test_main_takes_any_tensors_and_captures_what_does_not_touch_them(tmp_path):
    builder = ModelBuilder("chain")
    x = builder.input("x", (2, 32))
    for _ in range(4):
        x = builder.relu(builder.gemm(x, 32, 32, sparsity=0.5))
    text = executable_text(builder.output(x).model(), tmp_path)
    for name in ("main", "main_cuda_graph_capture"):
        assert len([called for called in function(text, name) if called.startswith("sparsetvm_launch_")]) == 2


def test_input_that_many_kernels_read_is_copied_once_before_the_graph(tmp_path):
    builder = ModelBuilder("many")
    x = builder.input("x", (2, 32))
    parts = [builder.gemm(x, 32, 32, sparsity=0.5) for _ in range(3)]
    total = builder.op("Add", builder.op("Add", parts[0], parts[1]), parts[2])
    main = function(executable_text(builder.output(builder.gemm(total, 32, 8)).model(), tmp_path), "main")
    assert len([name for name in main if name.startswith("sparsetvm_launch_")]) == 2  # the copy and the last product


def test_layers_of_equal_code_share_a_cubin_and_the_cache_serves_it_again(tmp_path, monkeypatch):
    source = nvcc.launch_source(copy_launch(64))
    (first,) = nvcc.compile_sources([source], H200)
    monkeypatch.setattr(nvcc, "_compile", None)
    assert nvcc.compile_sources([source, source], H200) == [first, first]


def test_damaged_cache_entry_is_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setattr(nvcc, "cubin_folder", lambda: tmp_path)
    source = nvcc.launch_source(copy_launch(64))
    (first,) = nvcc.compile_sources([source], H200)
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(b"no machine code")
    assert nvcc.compile_sources([source], H200) == [first]


def test_kernel_that_does_not_compile_is_named_with_the_compilers_words(tmp_path):
    path = tmp_path / "broken.cu"
    path.write_text('extern "C" __global__ void broken(float* y, int n) { y[0] = undeclared; }\n')
    launch = Launch(str(path), "broken", (), (1, 1, 1), 32)
    with pytest.raises(SparseTvmError, match="undeclared"):
        nvcc.compile_sources([nvcc.launch_source(launch)], H200)


def test_missing_compiler_is_an_environment_problem_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(nvcc, "_find_nvcc", lambda environment: None)
    monkeypatch.setattr(nvcc, "version_of", lambda package: "missing")
    with pytest.raises(EnvironmentProblem) as error:
        sparsetvm.compile(network().save(tmp_path / "m.onnx"), tmp_path / "m.so", target="cuda,sm_90", log_dir=tmp_path)
    assert "sparsetvm[cuda]" in str(error.value.hint)
    assert error.value.exit_code == 4


def test_library_for_a_gpu_says_what_is_missing_without_a_driver(tmp_path, monkeypatch):
    library = tmp_path / "net.so"
    sparsetvm.compile(network().save(tmp_path / "net.onnx"), library, target="cuda,sm_90", log_dir=tmp_path)
    monkeypatch.setattr("sparsetvm.core.cuda_runtime._find_driver", lambda: None)
    with pytest.raises(EnvironmentProblem, match="driver"):
        sparsetvm.load(library)


def test_launches_that_ask_for_other_amounts_of_shared_memory_have_names_of_their_own():
    """TVM asks the driver once for each name, at its first launch: the others would fail."""
    small, large, larger = (
        Launch("copy.cu", "copy", (), (1, 1, 1), 32, shared=shared) for shared in (0, 64 << 10, 96 << 10)
    )
    assert len({nvcc.kernel_symbol(launch) for launch in (small, large, larger)}) == 3
    below = Launch("copy.cu", "copy", (), (1, 1, 1), 32, shared=40 << 10)
    assert nvcc.kernel_symbol(below) == nvcc.kernel_symbol(small)


def test_generated_kernels_are_told_apart_by_their_text():
    first, second = (Launch("made.cu", "made", (), (1, 1, 1), 32, text=f"// {number}") for number in (1, 2))
    assert nvcc.kernel_symbol(first) != nvcc.kernel_symbol(second)
    assert nvcc.launch_source(first).text == "// 1"
