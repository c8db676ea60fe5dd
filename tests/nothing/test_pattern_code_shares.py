"""Parts of the rows of a layer are equal: its rows are dealt to them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sparsetvm.schedules.base import template

from sparsetvm.analysis.patterns import summarize
from sparsetvm.core.layout import Tiled
from sparsetvm.core.target import parse_target
from sparsetvm.core.workload import Epilogue, Workload

ORDER, FIRST = 5, 6  # positions among the packed arrays


@pytest.mark.parametrize("mcpu", ["skylake-avx512", "znver4", "haswell"])
@pytest.mark.parametrize(("m", "parts"), [(512, 16), (768, 16), (3072, 16), (768, 2), (100, 3), (40, 16), (8, 16)])
def test_rows_are_dealt_evenly(m: int, parts: int, mcpu: str) -> None:
    target = parse_target(f"cpu,{mcpu}", parts)
    lanes, tokens = target.lanes, 2 * target.lanes
    weight = (np.random.default_rng(0).random((m, 256)) < 0.1).astype(np.float32)
    layouts = Tiled(tokens, 256, lanes), Tiled(tokens, m, lanes)
    workload = Workload("matmul", m, 256, tokens, *layouts, Epilogue(), summarize(weight), threads=parts)
    code = template("x86.pattern_code")
    config = code.default(workload, target).replace(row_parts=parts)
    packed = code.pack(weight, None, workload, config, target)
    pieces, order, first = packed.meta["pieces"], packed.arrays[ORDER], packed.arrays[FIRST]
    shares = [{int(row) for i in order[a:b] for row in pieces[i].rows} for a, b in itertools.pairwise(first)]
    assert sorted(row for share in shares for row in share) == list(range(m))
    assert max(map(len, shares)) <= 1.1 * -(-m // parts) + 1
