"""The AVX2 instructions of a pattern: registers that exist, one FMA per non-zero and tile, weights in reading order."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sparsetvm.formats.pattern_asm_avx2 import REGISTERS, emit_pieces, lane_masks, tiles_at_once
from sparsetvm.formats.pieces import CodePlan, Epilog


@pytest.mark.parametrize("rows", [4, 6, 8, 13])
def test_pieces_have_one_fma_per_non_zero_and_tile(rows: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((40, 64)).astype(np.float32)
    weight[rng.random(weight.shape) >= 0.2] = 0
    vectors = tiles_at_once(rows)
    epilog = Epilog(residual=True, residual_stride=8, activation="clip", mask=True)
    taps = (np.arange(64) * 8,)
    pieces, stream = emit_pieces(weight, taps, 40, 8, 8, vectors, CodePlan(rows, 32, 2, True), epilog)
    code = "\n".join(piece.code for piece in pieces)
    assert code.count("vfmadd231ps") == vectors * np.count_nonzero(weight)
    assert code.count("vbroadcastss") >= np.count_nonzero(weight)
    assert max(int(number) for number in re.findall(r"ymm(\d+)", code)) < REGISTERS
    assert ("(%r13)" in code) == (vectors == 2)
    assert sorted(stream.tolist()) == sorted(weight[weight != 0].tolist())
    assert sum(piece.weights for piece in pieces) == stream.size
    # disp8: one byte of displacement for every weight
    assert all(-128 <= int(at) < 128 for at in re.findall(r"vbroadcastss (-?\d+)\(%rdx\)", code))


def test_lane_masks_are_all_ones_or_zero() -> None:
    masks = lane_masks(np.array([0b10110001, 0xFF], np.uint16), 8).reshape(2, 8)
    np.testing.assert_array_equal(masks[0], [-1, 0, 0, 0, -1, -1, 0, -1])
    assert (masks[1] == -1).all()
    assert masks.dtype == np.int32
