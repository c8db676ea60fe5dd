"""Pixels of an image become tokens without a transposition on a GPU, and layer scales go into weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from canonical_checks import ops, rewritten
from cuda_remainder_cases import TARGET, needs_nvcc, nvcc_faults, run_remainder
from emulator.network import run_network
from models import ModelBuilder, random_inputs, relative_error, run_onnxruntime
from sparsetvm.schedules.cuda.remainder.tokens import transpose_images_kernel

from sparsetvm.core.layout import PLAIN, AnyLayout, HalfTiled, Planes, Tiled
from sparsetvm.core.target import parse_target
from sparsetvm.errors import SparseTvmError
from sparsetvm.rewrite.canonical.fold_scale_into_weights import fold_scale_into_weights
from sparsetvm.rewrite.canonical.move_scale_before_transpose import move_scale_before_transpose
from sparsetvm.rewrite.prepare import prepare
from sparsetvm.search.candidates import candidates_of

H200 = parse_target("cuda,sm_90")


@pytest.mark.parametrize(("batch", "size", "channels"), [(1, (8, 6), 5), (1, (7, 7), 33), (3, (1, 5), 2)])
def test_pixels_become_tokens_and_tokens_pixels(batch: int, size: tuple[int, int], channels: int) -> None:
    count = batch * size[0] * size[1]
    x = np.random.default_rng(0).standard_normal((batch, channels, *size)).astype(np.float32)
    planes, tiled = Planes(batch, channels, *size, 2, 4), Tiled(count, channels, -(-count // 4) * 4)
    tokens = tiled.to_physical(np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
    there = transpose_images_kernel(planes, tiled, TARGET, "there")
    assert np.array_equal(run_remainder(there, [planes.to_physical(x)], tokens.shape), tokens)
    back = transpose_images_kernel(tiled, planes, TARGET, "back")
    tokens[..., count:] = np.nan  # of no pixel
    assert np.array_equal(run_remainder(back, [tokens], planes.physical_shape(x.shape)), planes.to_physical(x))


@pytest.mark.parametrize(
    ("planes", "tiled"),
    [
        (Planes(1, 3, 4, 4, 1, 4), Tiled(16, 3, 4)),
        (Planes(1, 3, 4, 4, 1, 4), HalfTiled(16, 3, 16)),
        (Planes(1, 3, 4, 4, 1, 4), Tiled(12, 3, 12)),
        (Planes(1, 3, 2, 2, 1, 4, (2, 2)), Tiled(16, 3, 16)),
        (PLAIN, Tiled(16, 3, 16)),
    ],
)
def test_other_layouts_are_refused(planes: AnyLayout, tiled: AnyLayout) -> None:
    for pair in ((planes, tiled), (tiled, planes)):
        with pytest.raises(SparseTvmError, match="not rows of channels"):
            transpose_images_kernel(*pair, TARGET, "there")


@needs_nvcc
def test_kernels_compile_for_sm_90_without_spills(tmp_path: Path) -> None:
    planes, tiled = Planes(2, 3, 4, 4, 1, 4), Tiled(32, 3, 32)
    for pair in ((planes, tiled), (tiled, planes)):
        assert nvcc_faults(transpose_images_kernel(*pair, TARGET, "there"), tmp_path) == ""


def next_block(size: int = 4, batch: int = 1) -> ModelBuilder:
    """A block of ConvNeXt: a depthwise convolution, then products of its pixels, then the sum."""
    b = ModelBuilder(opset=18)
    image = b.conv(b.input("x", (batch, 3, size, size)), 3, 8)
    y = b.op("Transpose", b.conv(image, 8, 8, 3, groups=8), perm=[0, 2, 3, 1])
    y = b.layer_norm(y, 8)
    y = b.linear(b.gelu(b.linear(y, 8, 16, sparsity=0.5)), 16, 8, sparsity=0.5)
    y = b.op("Transpose", y, perm=[0, 3, 1, 2])
    y = b.op("Mul", y, b.const(b.vector(8).reshape(8, 1, 1)))
    return b.output(b.conv(b.op("Add", y, image), 8, 4))


def test_networks_have_no_transposition_on_a_gpu(tmp_path) -> None:
    builder = next_block(batch=2)
    prepared = prepare(builder.save(tmp_path / "m.onnx"), H200)
    moves = [node.op for node in prepared.graph.nodes if node.op in ("Transpose", "convert", "transpose_images")]
    assert moves == ["convert", "transpose_images", "transpose_images", "convert"]  # the others are input and output
    configs = {name: candidates_of(task.workload, H200).choices[0].default for name, task in prepared.tasks.items()}
    inputs = random_inputs(builder.model())
    found, launches = run_network(prepared.graph, prepared.tasks, configs, H200, inputs)
    (expected,) = run_onnxruntime(builder.model(), inputs).values()
    assert launches == len(prepared.graph.nodes)
    assert relative_error(found[0], expected) < 1e-5


def test_images_of_few_pixels_become_tokens_as_elsewhere(tmp_path) -> None:
    graph = prepare(next_block(2).save(tmp_path / "m.onnx"), H200).graph
    assert [node.op for node in graph.nodes].count("Transpose") == 2


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (), (4,), (6, 5, 4)])
def test_factor_behind_a_transposition_goes_before_it(shape: tuple[int, ...]) -> None:
    b = ModelBuilder(opset=18)
    y = b.op("Transpose", b.linear(b.input("x", (1, 5, 4, 3)), 3, 6), perm=[0, 3, 1, 2])
    factor = b.const(b.rng.standard_normal(shape).astype(np.float32))
    graph = rewritten(b.output(b.op("Mul", factor, y)), move_scale_before_transpose)
    assert ops(graph) == ["MatMul", "Add", "Mul", "Transpose"]
    assert fold_scale_into_weights(graph) is (shape in ((6, 1, 1), (1, 6, 1, 1), ()))


@pytest.mark.parametrize("case", ["no layer", "two readers", "grows"])
def test_other_factors_stay_behind_transpositions(case: str) -> None:
    b = ModelBuilder(opset=18)
    x = b.input("x", (1, 5, 4, 3))
    y = b.op("Transpose", b.relu(x) if case == "no layer" else b.linear(x, 3, 6), perm=[0, 3, 1, 2])
    shape = (2, 1, 1, 1) if case == "grows" else (1,)
    b.output(b.op("Mul", y, b.const(np.full(shape, 0.5, np.float32))))
    if case == "two readers":
        b.output(b.op("Neg", y))
    rewritten(b, move_scale_before_transpose, expect_change=False)
