"""Why a sparse layer is not faster."""

import pytest
from test_roofline import TARGETS, ZEN4, ZEN5, matmul

from sparsetvm.analysis.layers import expected_of_model, inspect_layer
from sparsetvm.analysis.limits import LIMITS, limit_of
from sparsetvm.analysis.roofline import expected_speedup, sparse_cycles, sparse_parts
from sparsetvm.core.graph import Graph
from sparsetvm.core.target import parse_target

H100 = parse_target("cuda,sm_90")
SHAPES = [(1024, 1024, 128), (2048, 2048, 1), (10, 30, 1), (64, 16, 4096), (512, 4608, 49)]


@pytest.mark.parametrize("target", [*TARGETS, H100], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["unstructured", "rows", "columns"])
def test_parts_are_named_and_make_up_the_time(target, shape, kind):
    work = matmul(*shape, 0.9, kind)
    parts = sparse_parts(work, target)
    assert set(parts) <= set(LIMITS)
    assert limit_of(work, target) in parts
    if target.kind == "cpu":
        assert sum(parts.values()) == pytest.approx(sparse_cycles(work, target))


@pytest.mark.parametrize(
    ("work", "target", "limit"),
    [
        (matmul(1024, 1024, 128, 0.9), ZEN4, "arithmetic"),
        (matmul(1024, 1024, 128, 0.9), ZEN5, "loads"),  # twice as many multiply-adds per clock, not twice the loads
        (matmul(2048, 2048, 1, 0.9), ZEN4, "weights"),
        (matmul(10, 30, 1, 0.5), ZEN4, "call"),
        (matmul(64, 16, 100_000, 0.95), ZEN4, "activations"),
        (matmul(4096, 4096, 1, 0.9), H100, "weights"),
    ],
)
def test_limit_is_what_takes_longest(work, target, limit):
    assert limit_of(work, target) == limit


def test_every_line_about_a_limit_fits_100_columns():
    assert [name for name, text in LIMITS.items() if len(f"{name}: {text}") > 100] == []


def test_sparse_layer_has_a_limit_and_a_dense_one_none():
    assert inspect_layer("a", matmul(1024, 1024, 128, 0.9), ZEN4).limit == "arithmetic"
    assert inspect_layer("a", matmul(1024, 1024, 1, 0.1), ZEN4).limit == ""


def test_model_gains_what_its_layers_gain_when_there_is_nothing_else():
    work = matmul(1024, 1024, 128, 0.9)
    graph = Graph("g", 21, [], {}, [], [])
    whole, layers = expected_of_model(graph, {"a": work, "b": work}, ZEN4)
    assert whole == pytest.approx(layers) == pytest.approx(expected_speedup(work, ZEN4))
    assert expected_of_model(graph, {}, ZEN4) == (None, None)
