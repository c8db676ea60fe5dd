"""Fused attention against numpy float64."""

from __future__ import annotations

import numpy as np
import pytest
from remainder_cases import TARGETS, compile_kernel, run_kernel, with_threads
from sparsetvm.schedules.x86.remainder.attention import Attention, attention_kernel, attention_supported

from sparsetvm.core.target import Target
from sparsetvm.errors import SparseTvmError

_RANDOM = np.random.default_rng(0)


def _reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, a: Attention) -> np.ndarray:
    def heads(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float64).reshape(a.batch, a.seq, a.heads, a.head_dim).transpose(0, 2, 1, 3)

    scores = heads(q) @ heads(k).transpose(0, 1, 3, 2) * a.scale + (0.0 if mask is None else mask.astype(np.float64))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ heads(v)).transpose(0, 2, 1, 3).reshape(a.batch * a.seq, a.heads * a.head_dim)


CASES = {
    "one_tile": Attention(1, 8, 2, 16, 0.25),
    "short": Attention(1, 5, 1, 3, 0.5),
    "tail": Attention(1, 37, 3, 20, 0.2),
    "four_tiles": Attention(1, 64, 2, 24, 0.2),
    "batch_and_key_mask": Attention(2, 32, 2, 12, 0.3, (2, 1, 1, 32)),
    "full_mask": Attention(2, 16, 3, 8, 0.3, (1, 3, 16, 16)),
    "tail_and_full_mask": Attention(1, 45, 2, 8, 0.3, (1, 1, 45, 45)),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_attention_matches_float64(case: str, target: Target) -> None:
    a = CASES[case]
    layout = a.layout(target.lanes)
    q, k, v = ((2 * _RANDOM.standard_normal((layout.rows, layout.cols))).astype(np.float32) for _ in range(3))
    mask = None if a.mask_shape is None else np.where(_RANDOM.random(a.mask_shape) < 0.3, -1e4, 0.0)
    kernel = compile_kernel(attention_kernel(a, with_threads(target, 1 + len(case) % 2), "attention"), target)
    packed = [layout.to_physical(x) for x in (q, k, v)]
    # What lies behind the last token is unspecified but finite: it must not reach the tokens.
    for array in packed:
        if layout.rows % target.lanes:
            array[-1, :, layout.rows % target.lanes :] = 9.0
    y = run_kernel(kernel, [*packed, *([] if mask is None else [mask])], layout.physical_shape(()))
    assert np.isfinite(y).all()
    assert np.abs(layout.to_logical(y, q.shape) - _reference(q, k, v, mask, a)).max() < 5e-6


def test_attention_supported_refuses_tiles_that_mix_images() -> None:
    target = TARGETS[0].values[0]
    assert attention_supported(Attention(1, 10, 2, 8, 1.0), target)
    assert not attention_supported(Attention(2, 10, 2, 8, 1.0), target)
    assert not attention_supported(Attention(1, 10, 2, 8, 1.0, (1, 1, 10, 5)), target)
    with pytest.raises(SparseTvmError, match="no fused kernel"):
        attention_kernel(Attention(2, 10, 2, 8, 1.0), target, "attention")
