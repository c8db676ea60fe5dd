"""x86.pattern_data in strips of rows that share their columns: patterns of blocks."""

from __future__ import annotations

import numpy as np
import pytest
from sparsetvm.schedules.base import matching, template
from test_matmul_templates import TARGETS, conv_reference, run

from sparsetvm.analysis.patterns import summarize
from sparsetvm.core.layout import Tiled
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload

EPILOGUE = Epilogue(bias=True, residual=True, activation="relu")


def blocks(rng: np.random.Generator, m: int, k: int, block: tuple[int, int], density: float) -> np.ndarray:
    """Random weights in r x c blocks, among them an empty row of blocks and a weight that happens to be zero."""
    r, c = block
    kept = rng.random((m // r, k // c)) < density
    kept[1], kept[0, 0] = False, True
    weight = rng.standard_normal((m, k)) * np.kron(kept, np.ones(block))
    weight[0, 0] = 0
    return weight.astype(np.float32)


def product(weight: np.ndarray, n: int, target: Target) -> tuple[Workload, list[np.ndarray | None], np.ndarray]:
    """Workload of a product with this weight, its arguments (weight, bias, X, residual), and Y in float64."""
    m, k = weight.shape
    rng = np.random.default_rng(2)
    lin, lout = Tiled(n, k, target.lanes), Tiled(n, m, target.lanes)
    x, r = (rng.standard_normal((n, size)).astype(np.float32) for size in (k, m))
    bias = rng.standard_normal(m).astype(np.float32)
    workload = Workload("matmul", m, k, n, lin, lout, EPILOGUE, summarize(weight), threads=target.threads)
    want = np.maximum(x.astype(np.float64) @ weight.T + bias + r, 0)
    return workload, [weight, bias, lin.to_physical(x), lout.to_physical(r)], want


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("block", [(2, 1), (4, 1), (8, 2), (16, 4)], ids=lambda b: f"{b[0]}x{b[1]}")
def test_strips_of_every_height_match_float64(target: Target, block: tuple[int, int]) -> None:
    weight = blocks(np.random.default_rng(0), 48, 200, block, 0.2)
    workload, arguments, want = product(weight, 70, target)
    data = template("x86.pattern_data")
    knobs = {knob.name: knob.values for knob in data.space(workload, target).knobs}
    assert knobs["rows"] == tuple(r for r in (1, 2, 4, 8, 16) if r <= block[0])
    for rows in knobs["rows"]:
        for nr, k_block in ((1, 64), (8, 200)):
            config = data.default(workload, target).replace(rows=rows, nr=nr, k_block=k_block)
            got = workload.layout_out.to_logical(run(data, workload, config, target, *arguments), want.shape)
            assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want), config


@pytest.mark.parametrize("target", TARGETS)
def test_strips_on_two_threads_match_float64(target: Target) -> None:
    target = Target(target.kind, target.mcpu, target.isa, 2)
    workload, arguments, want = product(blocks(np.random.default_rng(1), 64, 96, (4, 1), 0.2), 100, target)
    data = template("x86.pattern_data")
    got = run(data, workload, data.default(workload, target), target, *arguments)
    error = np.linalg.norm(workload.layout_out.to_logical(got, want.shape) - want)
    assert error < 1e-5 * np.linalg.norm(want)


@pytest.mark.parametrize("target", TARGETS)
def test_strips_do_not_cross_convolution_groups(target: Target) -> None:
    from sparsetvm.rewrite.plane_geometry import conv_layouts, required_pad

    # Blocks of 8 rows, groups of 12: strips of 4.
    conv, m, batch = ConvGeometry(32, 7, 7, (3, 3), pads=(1, 1, 1, 1), groups=2), 24, 2
    rng = np.random.default_rng(3)
    weight = blocks(rng, m, 16 * 9, (8, 1), 0.2)
    x = rng.standard_normal((batch, 32, 7, 7)).astype(np.float32)
    lin, lout = conv_layouts(conv, batch, m, required_pad(conv), target.lanes)
    workload = Workload("conv2d", m, 144, batch * 49, lin, lout, Epilogue(), summarize(weight), conv)
    data = template("x86.pattern_data")
    assert data.space(workload, target).knobs[-1].values == (1, 2, 4)
    want = conv_reference(x, weight.reshape(m, 16, 3, 3), conv)
    config = data.default(workload, target).replace(rows=4)
    got = run(data, workload, config, target, weight, None, lin.to_physical(x), None)
    assert np.linalg.norm(lout.to_logical(got, want.shape) - want) < 1e-5 * np.linalg.norm(want)
    np.testing.assert_array_equal(got, lout.to_physical(lout.to_logical(got, want.shape)))


def test_blocks_of_four_rows_go_to_strips_and_others_to_code() -> None:
    target = Target("cpu", "skylake-avx512", "avx512")
    first = {}
    for block in ((1, 1), (1, 4), (2, 1), (4, 1), (16, 16)):
        workload, _, _ = product(blocks(np.random.default_rng(0), 128, 128, block, 0.1), 64, target)
        first[block] = matching(workload, target)[0].name
    assert first[1, 1] == first[1, 4] == first[2, 1] == "x86.pattern_code"
    assert first[4, 1] == first[16, 16] == "x86.pattern_data"


def test_blocks_go_to_code_where_threads_would_lack_tiles() -> None:
    weight = blocks(np.random.default_rng(0), 128, 128, (4, 1), 0.1)
    for threads, n, name in ((16, 128, "x86.pattern_code"), (2, 128, "x86.pattern_data"), (1, 16, "x86.pattern_data")):
        target = Target("cpu", "skylake-avx512", "avx512", threads)
        assert matching(product(weight, n, target)[0], target)[0].name == name
