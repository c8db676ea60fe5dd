from __future__ import annotations

import msgspec
import numpy as np
import pytest

from sparsetvm.analysis.layers import inspect_layer, inspect_layers, why_dense
from sparsetvm.analysis.patterns import summarize
from sparsetvm.analysis.roofline import WORTH_IT, break_even_sparsity, expected_speedup
from sparsetvm.core.graph import Graph, Node
from sparsetvm.core.layout import PLAIN, Tiled
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import parse_target
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload

TARGETS = [parse_target(f"cpu,{name}", 1) for name in ("znver4", "emeraldrapids", "x86-64-v3")]
ZEN4 = TARGETS[0]
ZEN5 = parse_target("cpu,znver5", 1)


def matmul(
    m: int, k: int, n: int, sparsity: float, kind: str = "unstructured", block: tuple[int, int] = (1, 1)
) -> Workload:
    pattern = PatternSummary(kind, block, 1.0 - sparsity, 1.2, 0, "d")  # type: ignore[arg-type]
    return Workload("matmul", m, k, n, PLAIN, PLAIN, Epilogue(), pattern)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("n", [1, 4, 16, 128, 784])
def test_speedup_grows_with_sparsity(target, n: int) -> None:
    gains = [expected_speedup(matmul(1024, 1024, n, s), target) for s in (0.0, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98, 1.0)]
    assert gains == sorted(gains)
    assert gains[0] < WORTH_IT < gains[-1]


@pytest.mark.parametrize(
    ("work", "measured"),
    [
        (matmul(512, 512, 128, 0.9), 10.4),
        (matmul(768, 3072, 128, 0.8), 5.6),
        (matmul(512, 512, 784, 0.95), 16.7),
    ],
)
def test_speedup_is_near_what_was_measured_on_zen4(work: Workload, measured: float) -> None:
    assert expected_speedup(work, ZEN4) == pytest.approx(measured, rel=0.3)


@pytest.mark.parametrize(
    ("work", "measured"),
    [
        (matmul(1024, 1024, 1, 0.9), 7.0),
        (matmul(2048, 512, 1, 0.95), 12.1),
        (matmul(768, 3072, 1, 0.9), 6.8),
        (matmul(100, 300, 1, 0.982), 7.15),
        (matmul(10, 100, 1, 0.951), 1.3),
        (matmul(1024, 1024, 128, 0.9, "block", (16, 1)), 9.4),
        (matmul(1024, 1024, 128, 0.95, "block", (4, 1)), 17.5),
        (matmul(1024, 1024, 128, 0.9), 6.75),
        (matmul(1024, 1024, 128, 0.5, "n:m", (2, 4)), 1.63),
        (matmul(768, 768, 64, 0.97), 17.7),
    ],
)
def test_speedup_is_near_what_was_measured_on_zen5(work: Workload, measured: float) -> None:
    assert expected_speedup(work, ZEN5) == pytest.approx(measured, rel=0.25)


def test_tall_blocks_gain_more_than_single_weights() -> None:
    single = expected_speedup(matmul(1024, 1024, 784, 0.97), ZEN4)
    assert expected_speedup(matmul(1024, 1024, 784, 0.97, "block", (16, 1)), ZEN4) > single


def test_dropped_rows_gain_their_share() -> None:
    assert expected_speedup(matmul(1024, 1024, 784, 0.5, "rows"), ZEN4) == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("shape", [(1024, 1024, 1), (512, 512, 128), (10, 100, 1), (64, 64, 4)])
def test_break_even_is_where_it_becomes_worth_it(target, shape: tuple[int, int, int]) -> None:
    point = break_even_sparsity(matmul(*shape, 0.5), target)
    assert 0 < point < 1
    assert expected_speedup(matmul(*shape, min(1.0, point + 0.02)), target) >= WORTH_IT
    assert expected_speedup(matmul(*shape, point - 0.02), target) < WORTH_IT


def test_break_even_of_a_dense_layer_is_that_of_unstructured_pruning() -> None:
    assert break_even_sparsity(matmul(512, 512, 1, 0.0, "dense"), ZEN4) == break_even_sparsity(
        matmul(512, 512, 1, 0.5), ZEN4
    )


def test_depthwise_gains_less_than_a_full_convolution() -> None:
    geometry = ConvGeometry(512, 14, 14, (3, 3), pads=(1, 1, 1, 1))
    full = msgspec.structs.replace(matmul(512, 512 * 9, 196, 0.9), op="conv2d", conv=geometry)
    depthwise = msgspec.structs.replace(
        matmul(512, 9, 196, 0.9), op="conv2d", conv=msgspec.structs.replace(geometry, groups=512)
    )
    assert expected_speedup(depthwise, ZEN4) < expected_speedup(full, ZEN4) / 2


def test_a_pruned_layer_that_stays_dense_says_what_wins_and_how_many_zeros_would_be_needed() -> None:
    gpu = parse_target("cuda,sm_90,tf32")
    tiled = Tiled(1024, 4096, 1024)
    wide = msgspec.structs.replace(matmul(4096, 4096, 1024, 0.7), tf32=True, layout_in=tiled, layout_out=tiled)
    needed = round(100 * break_even_sparsity(wide, gpu))
    assert 75 < needed < 99
    reason = inspect_layer("fc", wide, gpu).reason
    assert reason == f"stays dense: 70 % sparse, tensor cores win, break-even here is about {needed} %"
    said = f"n=1024 at 70 %: tensor cores win; about {needed} % would be needed"
    assert why_dense(wide, gpu, tensor_cores=True) == said
    # Where the roofline had expected a gain, it does not know what would be needed.
    assert why_dense(matmul(4096, 4096, 1024, 0.99), gpu, tensor_cores=False) == "n=1024 at 99 %: dense wins"


def test_inspect_reports_every_layer_with_verdict_and_reason() -> None:
    work = {
        "pruned": matmul(1024, 1024, 128, 0.9),
        "slightly": matmul(1024, 1024, 1, 0.25),
        "not": matmul(64, 64, 1, 0.0, "dense"),
        "hardly": matmul(64, 64, 1, 0.002, "dense"),
        "blocks": matmul(1024, 1024, 128, 0.95, "block", (4, 1)),
    }
    layers = [Node(name, "matmul", [], [], domain="sparsetvm") for name in work]
    graph = Graph("g", 21, [Node("other", "Relu", [], []), *layers], {}, [], [])
    reports = inspect_layers(graph, work, ZEN4)
    assert [r.name for r in reports] == list(work)
    assert [r.verdict for r in reports] == ["sparse", "dense", "dense", "dense", "sparse"]
    assert reports[0].reason.startswith("sparse: 90 % unstructured, 9.")
    assert reports[0].reason.endswith("x expected")
    assert reports[1].reason == "stays dense: 25 % sparse, break-even here is about 31 %"
    assert reports[2].reason == "stays dense: it is not pruned"
    assert reports[3].reason == "stays dense: only 0.2 % of its weights are zero"
    assert reports[4].pattern == "block 4x1"
    assert reports[1].expected_speedup == 1.0
    assert (reports[0].shape, reports[0].nnz, reports[0].op) == ("matmul 1024x1024 n=128", 104858, "matmul")


def test_inspect_leaves_out_layers_without_a_workload() -> None:
    graph = Graph("g", 21, [Node("a", "matmul", [], [], domain="sparsetvm")], {}, [], [])
    assert inspect_layers(graph, {}, ZEN4) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (3, 3)])
def test_model_copes_with_tiny_and_empty_weights(shape: tuple[int, int]) -> None:
    for weight in (np.zeros(shape), np.ones(shape), np.eye(*shape)):
        work = msgspec.structs.replace(matmul(*shape, 1, 0.5), pattern=summarize(weight))
        for target in TARGETS:
            assert expected_speedup(work, target) > 0
            assert 0 <= break_even_sparsity(work, target) <= 1
