"""Layers write over a residual that nobody reads any more, and over no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from end_to_end import assert_same_outputs, check_against_onnxruntime, compile_default, run_library
from models import ModelBuilder, random_inputs, run_onnxruntime

from sparsetvm.build.write_in_place import SUFFIX, layers_in_place
from sparsetvm.core.manifest import read_manifest
from sparsetvm.core.target import cpu_flags, parse_target
from sparsetvm.rewrite.prepare import prepare
from sparsetvm.search.candidates import candidates_of

pytestmark = pytest.mark.skipif("avx512f" not in cpu_flags(), reason="needs AVX-512: there code is the default")

WIDE = 32


def bottleneck(b: ModelBuilder, x: str, *, kept: bool = False, sparsity: float = 0.8) -> str:
    """1x1 -> 3x3 -> 1x1 plus x. kept: x is read once more, behind the sum."""
    y = b.relu(b.conv(x, WIDE, 16, 1, sparsity=sparsity))
    y = b.relu(b.conv(y, 16, 16, 3, sparsity=sparsity))
    y = b.relu(b.op("Add", b.conv(y, 16, WIDE, 1, sparsity=sparsity), x))
    return b.relu(b.op("Add", b.conv(y, WIDE, WIDE, 1, sparsity=sparsity), x)) if kept else y


def network(blocks: int, *, kept: bool = False, batch: int = 1, sparsity: float = 0.8) -> ModelBuilder:
    b = ModelBuilder("bottlenecks", seed=3)
    x = b.relu(b.conv(b.input("x", (batch, 3, 9, 9)), 3, WIDE, 1))
    for _ in range(blocks):
        x = bottleneck(b, x, kept=kept, sparsity=sparsity)
    return b.output(b.conv(x, WIDE, 8, 1, sparsity=sparsity))


def in_place(builder: ModelBuilder, folder: Path) -> set[str]:
    target = parse_target("cpu", 1)
    prepared = prepare(builder.save(folder / "m.onnx"), target)
    configs = {name: candidates_of(task.workload, target).default for name, task in prepared.tasks.items()}
    return layers_in_place(prepared.graph, prepared.tasks, configs)


@pytest.mark.parametrize("sparsity", [0.8, 0.0])
@pytest.mark.parametrize(("threads", "batch"), [(1, 1), (2, 3)])
def test_blocks_in_place_match_onnxruntime(threads: int, batch: int, sparsity: float, tmp_path: Path) -> None:
    builder = network(3, batch=batch, sparsity=sparsity)
    inputs = random_inputs(builder.model())
    library = compile_default(builder, tmp_path, threads=threads)
    manifest = read_manifest(library)
    assert manifest is not None
    assert sum(kernel["symbol"].endswith(SUFFIX) for kernel in manifest[1].kernels) == 3
    expected = run_onnxruntime(builder.model(), inputs)
    assert_same_outputs(run_library(library, inputs), expected)
    assert_same_outputs(run_library(library, inputs), expected)


def test_residual_with_a_later_reader_is_left_alone(tmp_path: Path) -> None:
    builder = network(1, kept=True)
    assert len(in_place(builder, tmp_path)) == 1  # the second sum of the block, not the first
    check_against_onnxruntime(builder, tmp_path)


def test_residual_that_is_an_output_is_left_alone(tmp_path: Path) -> None:
    b = ModelBuilder("ends", seed=4)
    x = b.input("x", (1, WIDE, 9, 9))
    first = bottleneck(b, x)
    second = bottleneck(b, first)
    b.output(first, second)
    assert len(in_place(b, tmp_path)) == 1  # the first block's, over the input as it was converted to planes
    check_against_onnxruntime(b, tmp_path)


def test_layer_of_several_k_blocks_keeps_its_residual(tmp_path: Path) -> None:
    """All its K blocks but the last store sums in Y; the residual is added by the last one."""
    b = ModelBuilder("deep", seed=5)
    x = b.relu(b.conv(b.input("x", (1, 3, 9, 9)), 3, WIDE, 1))
    y = b.relu(b.conv(x, WIDE, 640, 1, sparsity=0.9))
    y = b.relu(b.op("Add", b.conv(y, 640, WIDE, 1, sparsity=0.9), x))
    b.output(b.conv(y, WIDE, 8, 1, sparsity=0.8))
    assert not in_place(b, tmp_path)
    check_against_onnxruntime(b, tmp_path)
