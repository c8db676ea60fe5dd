"""Picking every n-th pixel of plane tiles, and networks with strided 1x1 convolutions on plane tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from end_to_end import check_against_onnxruntime
from models import ModelBuilder
from remainder_cases import TARGETS, compile_kernel, run_kernel, with_threads
from sparsetvm.schedules.x86.remainder.gather import gather_kernel
from sparsetvm.schedules.x86.remainder.pick import pick_kernel, pick_tables

from sparsetvm.core.layout import PlaneTiles
from sparsetvm.core.target import Target, cpu_flags, parse_target
from sparsetvm.rewrite.prepare import prepare

_RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("size", "strides", "pads"),
    [((14, 14), (2, 2), (1, 1)), ((9, 20), (2, 3), (2, 0)), ((7, 7), (1, 2), (1, 3)), ((56, 56), (2, 2), (1, 1))],
)
def test_picked_pixels_are_every_nth(
    size: tuple[int, int], strides: tuple[int, int], pads: tuple[int, int], target: Target
) -> None:
    x = _RANDOM.standard_normal((2, 5, *size)).astype(np.float32)
    expected = np.ascontiguousarray(x[:, :, :: strides[0], :: strides[1]])
    source = PlaneTiles(2, 5, *size, pads[0], target.lanes)
    out = PlaneTiles(2, 5, *expected.shape[2:], pads[1], target.lanes)
    tables = pick_tables(source, out, strides, target)
    for threads in (1, 2):
        kernel = compile_kernel(pick_kernel(source, out, tables, with_threads(target, threads), "pick"), target)
        y = run_kernel(kernel, [source.to_physical(x), *tables], out.physical_shape(()))
        np.testing.assert_array_equal(y, out.to_physical(expected))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(1, 3), (2, 5, 700)])
def test_gathered_slices_are_behind_each_other(shape: tuple[int, ...], target: Target) -> None:
    slices = [_RANDOM.standard_normal(shape).astype(np.float32) for _ in range(3)]
    kernel = compile_kernel(gather_kernel(shape, 3, with_threads(target, 2), "gather"), target)
    y = run_kernel(kernel, slices, (3 * shape[0], *shape[1:]))
    np.testing.assert_array_equal(y, np.concatenate(slices))


@pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")
def test_strided_pointwise_convolution_reads_plane_tiles(tmp_path: Path) -> None:
    b = ModelBuilder("downsample", seed=6)
    x = b.relu(b.conv(b.input("x", (2, 3, 18, 18)), 3, 24, 3))
    y = b.relu(b.conv(x, 24, 16, 1, sparsity=0.8))
    y = b.conv(b.relu(b.conv(y, 16, 16, 3, stride=2, sparsity=0.8)), 16, 32, 1, sparsity=0.8)
    b.output(b.relu(b.op("Add", y, b.conv(x, 24, 32, 1, stride=2, sparsity=0.8))))
    graph = prepare(b.save(tmp_path / "m.onnx"), parse_target("cpu", 1)).graph
    (pick,) = (node for node in graph.nodes if node.op == "AveragePool")
    assert all(isinstance(graph.values[name].layout, PlaneTiles) for name in (*pick.inputs, *pick.outputs))
    check_against_onnxruntime(b, tmp_path)
