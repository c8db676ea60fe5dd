"""Threads that share rows, tiles or both compute what one thread does, whatever the number of either."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from remainder_cases import TARGETS, compile_kernel, with_threads
from sparsetvm.schedules.base import template
from sparsetvm.schedules.x86.shares import row_parts
from test_matmul_templates import sparse

from sparsetvm.analysis.patterns import summarize
from sparsetvm.core.layout import Tiled
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.measure.reference import inputs_of, make_reference

_KERNEL = template("x86.pattern_code")


def run(target: Target, m: int, tokens: int, activation: str = "relu", **knobs: int | str) -> int:
    """Compare with float64 what `target` computes; returns the number of its workers."""
    rng, k = np.random.default_rng(m), 200
    weight = sparse(rng, (m, k), 0.1)
    bias = rng.standard_normal(m).astype(np.float32)
    lin, lout = (Tiled(tokens, width, target.lanes) for width in (k, m))
    epilogue = Epilogue(True, True, activation)  # type: ignore[arg-type]
    workload = Workload("matmul", m, k, tokens, lin, lout, epilogue, summarize(weight), threads=target.threads)
    config = _KERNEL.default(workload, target).replace(**knobs)
    assert _KERNEL.space(workload, target).contains(config)
    packed = _KERNEL.pack(weight, bias, workload, config, target)
    kernel = compile_kernel(_KERNEL.kernel(workload, config, packed, target, "kernel"), target)
    reference = make_reference(workload, weight, bias)
    out = tvm.runtime.tensor(np.full(lout.physical_shape(()), np.nan, np.float32))
    kernel(*map(tvm.runtime.tensor, (*inputs_of(reference), *packed.arrays)), out)
    assert not reference.fault(out.numpy())
    return int(packed.meta["shares"].workers)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("parts", row_parts(6))
def test_every_number_of_parts_gives_the_same(parts: int, target: Target) -> None:
    six = with_threads(target, 6)
    assert run(six, 37, 5 * target.lanes + 3, row_parts=parts, k_block=200, order="k") == parts * (6 // parts)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("order", ["k", "rows"])
def test_parts_of_several_blocks_and_pieces_keep_their_order(order: str, target: Target) -> None:
    four, knobs = with_threads(target, 4), {"rows": 12, "groups": 1, "order": order, "prefetch": "next"}
    assert run(four, 150, 9 * target.lanes, "silu", row_parts=2, k_block=96, tiles=4, **knobs) == 4


@pytest.mark.parametrize("target", TARGETS)
def test_fewer_rows_than_parts_leave_threads_idle(target: Target) -> None:
    assert run(with_threads(target, 8), 3, 2 * target.lanes, row_parts=8) == 3


@pytest.mark.parametrize("target", TARGETS)
def test_fewer_tiles_than_threads_have_a_worker_each(target: Target) -> None:
    assert run(with_threads(target, 8), 30, 3 * target.lanes, row_parts=1) == 3
