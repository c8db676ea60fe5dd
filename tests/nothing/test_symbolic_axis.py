"""Networks padded along a dimension compute at real positions what they compute without padding, or are rejected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graph_eval import evaluate
from models import ModelBuilder, bert, conv_net, mlp, mobile_net
from onnx import TensorProto

from sparsetvm.analysis.symbolic_axis import SymbolicAxes, trace
from sparsetvm.core.graph import Graph
from sparsetvm.errors import ModelError
from sparsetvm.frontend.load import load_model
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.mask_padding import mask_padding

BUCKET = 11


def imported(path: Path, size: int) -> Graph:
    graph = load_model(path, sizes={"S": size}).graph
    canonicalize(graph)
    return graph


def traced(builder: ModelBuilder, folder: Path) -> tuple[Path, SymbolicAxes]:
    path = builder.save(folder / "m.onnx")
    return path, trace(imported(path, BUCKET), imported(path, 13), (BUCKET, 13), "S")


def check_padding(builder: ModelBuilder, folder: Path, size: int) -> SymbolicAxes:
    """Run `size` positions in a network for BUCKET; the rest is filled with rubbish, which must not matter."""
    path, found = traced(builder, folder)
    small, large = imported(path, size), imported(path, BUCKET)
    mask_padding(large, found.masks)
    rng = np.random.default_rng(0)
    real, padded = {}, {}
    for name in large.inputs:
        value = large.values[name]
        if name in large.padding:
            padded[name] = large.padding[name].values(BUCKET, size)
            continue
        full = rng.standard_normal(value.shape) if value.dtype == "float32" else rng.integers(0, 5, value.shape)
        padded[name] = (50 * full if value.dtype == "float32" else full).astype(value.dtype)
        real[name] = padded[name][tuple(slice(0, d) for d in small.values[name].shape)]
        if value.dtype == "float32":
            padded[name][tuple(slice(0, d) for d in small.values[name].shape)] = real[name] = real[name] / 50
    expected, computed = evaluate(small, real), evaluate(large, padded)
    for name, value in expected.items():
        np.testing.assert_allclose(computed[name][tuple(slice(0, d) for d in value.shape)], value, rtol=1e-6, atol=1e-7)
    return found


@pytest.mark.parametrize("make", [conv_net, mobile_net, mlp], ids=["conv", "mobile", "mlp"])
def test_samples_of_a_batch_are_independent(make: Callable[..., ModelBuilder], tmp_path: Path) -> None:
    found = check_padding(make(batch="S"), tmp_path, 3)
    assert found.splits
    assert found.masks == []


def test_sequences_of_a_batch_are_independent(tmp_path: Path) -> None:
    assert check_padding(bert(batch="S", seq=4), tmp_path, 2).splits


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 7, 10])
def test_tokens_of_attention_are_masked(batch: int, size: int, tmp_path: Path) -> None:
    found = check_padding(bert(batch=batch, seq="S", hidden=8, heads=2, layers=2), tmp_path, size)
    assert not found.splits
    assert [mask.kind for mask in found.masks] == ["lowest", "lowest"]


def test_layers_share_one_masked_bias(tmp_path: Path) -> None:
    path, found = traced(bert(batch=1, seq="S", hidden=8, heads=2, layers=3), tmp_path)
    graph = imported(path, BUCKET)
    mask_padding(graph, found.masks)
    assert len(graph.padding) == 1
    (name,) = graph.padding
    assert len(graph.consumers()[name]) == 1


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceSum", "ReduceMax"])
@pytest.mark.parametrize("axes", [[1], [1, 2], [-2]])
def test_reductions_over_tokens_count_real_ones_only(op: str, axes: list[int], tmp_path: Path) -> None:
    builder = ModelBuilder()
    x = builder.linear(builder.input("x", (2, "S", 6)), 6, 4)
    if op == "ReduceSum":
        y = builder.op(op, x, builder.const(axes), keepdims=0)
    else:
        y = builder.op(op, x, axes=axes, keepdims=0)
    assert not check_padding(builder.output(builder.relu(y)), tmp_path, 4).splits


def test_products_over_tokens_are_masked(tmp_path: Path) -> None:
    builder = ModelBuilder()
    x = builder.input("x", (1, "S", 6))
    moments = builder.op("MatMul", builder.op("Transpose", x, perm=[0, 2, 1]), builder.op("Tanh", x))
    (mask,) = check_padding(builder.output(moments), tmp_path, 5).masks
    assert mask.kind == "zero"


def test_position_table_and_first_token_are_fine_but_bind_positions(tmp_path: Path) -> None:
    builder = ModelBuilder()
    ids = builder.input("ids", (1, "S"), TensorProto.INT64)
    words = builder.op("Gather", builder.const(builder.weight((5, 8), 8)), ids)
    length = builder.op("Slice", builder.op("Shape", ids), builder.const([1]), builder.const([2]))
    table = builder.const(builder.weight((1, 32, 8), 8))
    places = builder.op("Slice", table, builder.const([0]), length, builder.const([1]))
    x = builder.relu(builder.op("Add", words, places))
    first = builder.op("Gather", x, builder.const(np.array(0)), axis=1)
    found = check_padding(builder.output(builder.linear(first, 8, 3)), tmp_path, 4)
    assert not found.splits


def rejected(builder: ModelBuilder, folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        traced(builder, folder)
    assert "'S'" in str(error.value)
    return str(error.value)


def mixing(op: str) -> ModelBuilder:
    builder = ModelBuilder()
    x = builder.input("x", (1, 4, "S", 6))
    relu = builder.relu(x)
    if op == "Conv":
        y = builder.conv(relu, 4, 4, 3)
    elif op == "Concat":
        y = builder.op("Concat", relu, relu, axis=2)
    elif op == "last":
        y = builder.op("Gather", relu, builder.const(np.array(-1)), axis=2)
    elif op == "merge":
        y = builder.op("Reshape", relu, builder.const([1, -1, 6]))
    elif op == "ReduceProd":
        y = builder.op("ReduceProd", relu, axes=[2])
    elif op == "CumSum":
        y = builder.op("CumSum", relu, builder.const(np.array(2)))
    else:
        y = builder.op("GlobalAveragePool", relu)
    return builder.output(builder.relu(y))


@pytest.mark.parametrize("op", ["Conv", "Concat", "last", "merge", "ReduceProd", "CumSum", "GlobalAveragePool"])
def test_what_cannot_be_padded_is_rejected_by_name(op: str, tmp_path: Path) -> None:
    assert "layer '" in rejected(mixing(op), tmp_path)


def test_constant_that_depends_on_the_size_is_rejected(tmp_path: Path) -> None:
    builder = ModelBuilder()
    x = builder.input("x", (1, "S", 6))
    length = builder.op(
        "Cast", builder.op("Slice", builder.op("Shape", x), builder.const([1]), builder.const([2])), to=1
    )
    message = rejected(builder.output(builder.op("Div", builder.relu(x), length)), tmp_path)
    assert "depends on the size" in message


def test_batch_that_is_reduced_over_does_not_split(tmp_path: Path) -> None:
    builder = ModelBuilder()
    x = builder.relu(builder.input("x", ("S", 6)))
    mean = builder.op("ReduceMean", x, axes=[0])
    assert not check_padding(builder.output(builder.op("Sub", x, mean)), tmp_path, 3).splits
