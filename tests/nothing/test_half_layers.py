"""Activations are float16 in memory between products that multiply in float16, and the numbers stay the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from emulator.network import run_network
from float16 import rounded, to_float16
from models import ModelBuilder, prune, random_inputs, relative_error, run_onnxruntime

from sparsetvm.core.arithmetic import network_tolerance
from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph
from sparsetvm.core.layout import HalfTiled, Plain, Tiled
from sparsetvm.core.target import Target, parse_target
from sparsetvm.rewrite import assign_layouts
from sparsetvm.rewrite.prepare import Prepared, prepare
from sparsetvm.search.candidates import candidates_of

FP16 = parse_target("cuda,sm_90", allow_fp16=True)


def chain(weights: list[np.ndarray], tokens: int = 16, residual_at: int | None = None) -> ModelBuilder:
    """Products with bias and ReLU. residual_at: the output of that product is added to that of the one after it."""
    builder = ModelBuilder("chain")
    x = builder.input("x", (tokens, weights[0].shape[1]))
    for at, weight in enumerate(weights):
        product = builder.op("MatMul", x, builder.const(np.ascontiguousarray(weight.T)))
        y = builder.op("Add", product, builder.const(builder.vector(len(weight))))
        if residual_at is not None and at == residual_at + 1:
            y = builder.op("Add", y, x)
        x = builder.op("Relu", y)
    return builder.output(x)


def blocks(m: int, k: int, block: tuple[int, int] = (16, 16)) -> np.ndarray:
    weight = np.random.default_rng(m + k).standard_normal((m, k)).astype(np.float32) / 8
    return prune(weight, 0.75, block)


def two_four(m: int, k: int) -> np.ndarray:
    """Two non-zeros of every four columns, and no dead channel."""
    rng = np.random.default_rng(m)
    weight = rng.standard_normal((m, k)).astype(np.float32) / 8
    weight[rng.random((m, k // 4, 4)).argsort(axis=2).reshape(m, k) >= 2] = 0
    return weight


def strewn(m: int, k: int) -> np.ndarray:
    return prune(np.random.default_rng(7).standard_normal((m, k)).astype(np.float32), 0.9)


def prepared(builder: ModelBuilder, folder: Path, target: Target = FP16) -> Prepared:
    return prepare(builder.save(folder / "m.onnx"), target)


def between(graph: Graph) -> list[type]:
    """Layouts of what the products read, then of what the last one writes."""
    products = [node for node in graph.nodes if node.is_op("matmul", domain=SPARSETVM_DOMAIN)]
    return [type(graph.values[node.inputs[0]].layout) for node in products] + [
        type(graph.values[products[-1].outputs[0]].layout)
    ]


def run(made: Prepared, templates: list[str], inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What the network computes on the emulator with the default configs of these templates."""
    configs = {
        layer: next(choice for choice in candidates_of(task.workload, FP16).choices if choice.name == name).default
        for (layer, task), name in zip(made.tasks.items(), templates, strict=True)
    }
    (found,), launches = run_network(made.graph, made.tasks, configs, FP16, inputs)
    assert launches == len(made.graph.nodes)
    return found


def test_products_of_blocks_and_of_two_four_hand_each_other_float16(tmp_path: Path) -> None:
    builder = chain([blocks(128, 96), two_four(96, 128)])
    made = prepared(builder, tmp_path)
    assert between(made.graph) == [HalfTiled, HalfTiled, Tiled]
    inputs = random_inputs(builder.model())
    found = run(made, ["cuda.block_tiles", "cuda.two_four"], inputs)
    (wanted,) = run_onnxruntime(builder.model(), inputs).values()
    assert 1e-5 < relative_error(found, wanted) < network_tolerance(["float16"] * 2)


def test_rounding_when_stored_gives_the_numbers_of_rounding_when_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = chain([blocks(64, 48), blocks(48, 64)])
    inputs = random_inputs(builder.model())
    half = run(prepared(builder, tmp_path), ["cuda.block_mma"] * 2, inputs)
    monkeypatch.setattr(assign_layouts, "half_layers", lambda graph, target: {})
    made = prepared(builder, tmp_path)
    assert between(made.graph) == [Tiled, Tiled, Tiled]
    np.testing.assert_array_equal(half, run(made, ["cuda.block_mma"] * 2, inputs))


def test_float16_model_keeps_float16_between_its_products(tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    onnx.save(to_float16(rounded(chain([blocks(64, 48), blocks(48, 64)])).model()), path)
    assert between(prepare(path, parse_target("cuda,sm_90")).graph) == [HalfTiled, HalfTiled, Tiled]
    assert HalfTiled not in between(prepare(path, parse_target("cpu,znver4", threads=1)).graph)


def test_what_others_read_stays_float32(tmp_path: Path) -> None:
    strict = parse_target("cuda,sm_90")
    weights = [blocks(64, 48), blocks(48, 64)]
    assert between(prepared(chain(weights), tmp_path, strict).graph) == [Tiled, Tiled, Tiled]
    # Kernels for strewn non-zeros multiply in float32, unless dense ones are faster.
    assert between(prepared(chain([weights[0], strewn(48, 64)]), tmp_path).graph) == [HalfTiled, Tiled, Tiled]
    # Rows of 12 numbers do not begin at multiples of 16 bytes.
    assert between(prepared(chain(weights, tokens=12), tmp_path).graph) == [Tiled, Tiled, Tiled]
    square = [blocks(64, 64), blocks(64, 64), blocks(48, 64)]
    with_residual = prepared(chain(square, residual_at=0), tmp_path)
    assert between(with_residual.graph) == [HalfTiled, Tiled, Tiled, Tiled]


def test_sparse_tensor_cores_get_float16_from_a_kernel_that_writes_float32(tmp_path: Path) -> None:
    graph = prepared(chain([strewn(64, 48), two_four(48, 64)]), tmp_path).graph
    assert between(graph) == [Tiled, HalfTiled, Tiled]
    converts = [node for node in graph.nodes if node.is_op("convert", domain=SPARSETVM_DOMAIN)]
    moved = [(type(graph.values[n.inputs[0]].layout), type(graph.values[n.outputs[0]].layout)) for n in converts]
    assert moved == [(Plain, Tiled), (Tiled, HalfTiled), (Tiled, Plain)]
