"""Rotary embeddings of tokens in tiles against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from remainder_cases import TARGETS, compile_kernel, run_kernel, with_threads
from sparsetvm.schedules.x86.remainder.rotary import rotary_kernel, rotary_tables

from sparsetvm.core.layout import Tiled
from sparsetvm.core.target import Target


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch", [1, 2])
def test_rotary_matches_numpy(batch: int, target: Target) -> None:
    tokens, heads, depth = 24, 3, 6
    tiled = Tiled(batch * tokens, heads * depth, target.lanes)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, tokens, heads, depth)).astype(np.float32)
    turn = rng.uniform(0, 6, (tokens, depth)).astype(np.float32)
    cosines, sines = np.cos(turn), np.sin(turn)
    across = np.concatenate([-x[..., depth // 2 :], x[..., : depth // 2]], -1).astype(np.float64)
    expected = x * cosines[:, None].astype(np.float64) + across * sines[:, None]
    kernel = compile_kernel(rotary_kernel(tiled, depth, with_threads(target, 2), "kernel"), target)
    given = [tiled.to_physical(x.reshape(batch * tokens, -1)), *rotary_tables(tiled, cosines, sines)]
    y = run_kernel(kernel, given, tiled.physical_shape(x.shape))
    assert np.abs(tiled.to_logical(y, expected.shape) - expected).max() < 1e-6
