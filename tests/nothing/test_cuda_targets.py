"""What `--target cuda` means without a GPU, and what changes in a network that is compiled for one."""

from __future__ import annotations

import ctypes

import pytest
from models import ModelBuilder, bert, conv_net
from sparsetvm.schedules import base
from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.analysis.roofline import expected_speedup
from sparsetvm.core import cuda_driver
from sparsetvm.core.layout import Plain, PlaneTiles, Tiled
from sparsetvm.core.target import device_fingerprint, parse_target
from sparsetvm.errors import EnvironmentProblem, TargetError
from sparsetvm.log.journal import journal_path
from sparsetvm.measure.nvcc import kernel_symbol, launch_source, macro_value
from sparsetvm.rewrite.prepare import prepare
from sparsetvm.rewrite.tokens import token_lanes

H200 = parse_target("cuda,sm_90")


@pytest.fixture
def no_driver(monkeypatch):
    def missing(name, *_):
        raise OSError(f"{name}: cannot open shared object file")

    cuda_driver.library.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    yield
    cuda_driver.library.cache_clear()


def test_architecture_is_a_cross_compile_that_cannot_measure():
    assert (H200.kind, H200.isa, H200.host, H200.sms, H200.shared, H200.threads) == (
        "cuda",
        "sm_90",
        False,
        132,
        232448,
        1,
    )
    assert str(H200) == "cuda,sm_90"


@pytest.mark.parametrize("text", ["cuda", "cuda:1"])
def test_gpu_of_a_machine_without_one_says_what_to_write(no_driver, text):
    with pytest.raises(EnvironmentProblem) as error:
        parse_target(text)
    assert "cuda,sm_90" in str(error.value.hint)


@pytest.mark.parametrize(
    "text", ["cuda,sm_9", "cuda:x", "cuda:", "cuda:\u00b2", "cuda:99999999999999999999", "cuda:1,sm_90", "cudax"]
)
def test_nonsense_is_a_target_error_with_a_next_step(text):
    with pytest.raises(TargetError) as error:
        parse_target(text)
    assert error.value.hint


def test_journal_of_a_gpu_is_named_after_its_model(tmp_path):
    device = device_fingerprint(H200)
    assert journal_path(tmp_path, device).name == "cuda-any-sm-90.jsonl"


def test_templates_of_one_kind_of_device_never_serve_the_other():
    host = parse_target("cpu,znver4")
    assert base.is_for("x86.dense", host)
    assert not base.is_for("x86.dense", H200)
    assert not base.is_for("cuda.dense", host)
    assert base.is_for("test.faulty", H200)


def test_all_tokens_are_in_one_tile():
    assert [token_lanes(rows, H200) for rows in (9, 12, 128, 197)] == [12, 12, 128, 200]


def layouts(builder: ModelBuilder, tmp_path) -> list[object]:
    graph = prepare(builder.save(tmp_path / "m.onnx"), H200).graph
    return [value.layout for value in graph.values.values()]


def test_network_of_many_tokens_has_single_tiles(tmp_path):
    tiled = [layout for layout in layouts(bert(), tmp_path) if isinstance(layout, Tiled)]
    assert tiled
    assert all(layout.tiles == 1 and layout.lanes % 4 == 0 for layout in tiled)


def test_convolutions_never_use_plane_tiles(tmp_path):
    found = layouts(conv_net(), tmp_path)
    assert not [layout for layout in found if isinstance(layout, PlaneTiles)]
    assert all(layout.lanes == 4 for layout in found if not isinstance(layout, Plain))


@pytest.mark.parametrize(("tokens", "plain"), [(8, True), (9, False)])
def test_up_to_eight_tokens_are_plain(tmp_path, tokens, plain):
    builder = ModelBuilder()
    x = builder.input("x", (tokens, 64))
    model = builder.output(builder.gemm(x, 64, 32, sparsity=0.9)).save(tmp_path / "m.onnx")
    (task,) = prepare(model, H200).unique_tasks()
    assert isinstance(task.workload.layout_in, Plain) is plain


def test_batch_is_never_split_on_a_gpu(tmp_path):
    assert prepare(conv_net().save(tmp_path / "m.onnx"), H200).graph.chunks == 1


@pytest.mark.parametrize(("sparsity", "low", "high"), [(0.0, 0.0, 1.1), (0.9, 1.2, 10.0), (0.98, 3.0, 50.0)])
def test_roofline_of_a_gpu_grows_with_sparsity(tmp_path, sparsity, low, high):
    builder = ModelBuilder()
    x = builder.input("x", (1024, 1024))
    model = builder.output(builder.gemm(x, 1024, 1024, sparsity=sparsity)).save(tmp_path / "m.onnx")
    (task,) = prepare(model, H200).unique_tasks()
    assert low < expected_speedup(task.workload, H200) < high


@pytest.mark.parametrize(("value", "text"), [(3, "3"), (0.5, "(0.5f)"), (-6.0, "(-6.0f)"), (float("inf"), "INFINITY")])
def test_macro_is_a_number_of_cpp(value, text):
    assert macro_value(value) == text


def test_kernel_name_depends_on_what_shapes_the_code_alone():
    launch = Launch("copy.cu", "copy_bytes", (("SP_A", 1),), (1, 1, 1), 32, scalars=(1, 2))
    other = Launch("copy.cu", "copy_bytes", (("SP_A", 1),), (9, 1, 1), 64, 100, scalars=(3, 4))
    assert kernel_symbol(launch) == kernel_symbol(other)
    assert kernel_symbol(launch) != kernel_symbol(Launch("copy.cu", "copy_bytes", (("SP_A", 2),), (1, 1, 1), 32))
    assert f"copy_bytes={kernel_symbol(launch)}" in launch_source(launch).macros
