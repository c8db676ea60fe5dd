"""The AVX-512 instructions of a pattern: what a row group prefetches for the next one."""

from __future__ import annotations

import re

import numpy as np

from sparsetvm.formats.pattern_asm import emit_pieces
from sparsetvm.formats.pieces import CodePlan, Epilog

ROWS, LANES = 8, 16
BYTES = 4 * LANES  # between the sums of two rows


def prefetched_sums(sums_ahead: bool) -> list[set[int]]:
    """Rows whose sums each piece prefetches, of 24 rows (3 groups) x 64 columns in two K blocks."""
    weight = np.random.default_rng(0).standard_normal((24, 64)).astype(np.float32)
    epilog = Epilog(residual=False, residual_stride=LANES, activation="none", mask=False)
    plan = CodePlan(ROWS, 32, 64, rows_first=True, clustered=False, runs=0, sums_ahead=sums_ahead)
    pieces, _ = emit_pieces(weight, (np.arange(64) * LANES,), 24, LANES, LANES, plan, epilog)
    return [{int(at) // BYTES for at in re.findall(r"prefetcht0 (\d+)\(%rsi\)", piece.code)} for piece in pieces]


def test_groups_prefetch_the_sums_of_the_next_group() -> None:
    first, second = prefetched_sums(sums_ahead=True)
    assert first == set()  # its sums start from the bias
    assert second == set(range(ROWS, 24))  # nobody prefetches the first group's


def test_groups_of_a_piece_share_the_prefetches_of_the_next_tile() -> None:
    weight = np.random.default_rng(0).standard_normal((24, 64)).astype(np.float32)
    epilog = Epilog(residual=False, residual_stride=LANES, activation="none", mask=False)
    plan = CodePlan(ROWS, 32, 64, rows_first=True, clustered=False, runs=0, x_ahead=1000 * LANES)
    pieces, _ = emit_pieces(weight, (np.arange(64) * LANES,), 24, LANES, LANES, plan, epilog)
    for first_column, piece in zip((0, 32), pieces, strict=True):
        lines = [int(at) // BYTES for at in re.findall(r"prefetcht1 (\d+)\(%rdi\)", piece.code)]
        assert sorted(lines) == list(range(1000 + first_column, 1000 + first_column + 32))


def test_sums_are_not_prefetched_unasked() -> None:
    assert prefetched_sums(sums_ahead=False) == [set(), set()]
