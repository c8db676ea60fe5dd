"""Fused CUDA attention against numpy in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuda_remainder_cases import TARGET, needs_nvcc, nvcc_faults, run_remainder
from sparsetvm.schedules.cuda.remainder.attention import Attention, attention_kernel, attention_supported

from sparsetvm.errors import SparseTvmError

_RANDOM = np.random.default_rng(0)
CASES = {
    "many_short": Attention(4, 12, 40, 4, 0.3),
    "one_short": Attention(1, 13, 2, 8, 0.3),
    "two_images": Attention(2, 20, 2, 8, 0.3, (2, 1, 1, 20)),
    "mask_of_queries": Attention(1, 37, 3, 24, 0.2, (1, 3, 37, 37)),
    "two_chunks": Attention(1, 131, 1, 20, 0.2, (1, 1, 1, 131)),
    "three_chunks": Attention(1, 290, 1, 64, 0.1),
}


def _expected(a: Attention, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    heads = [x.astype(np.float64).reshape(a.batch, a.seq, a.heads, a.head_dim).transpose(0, 2, 1, 3) for x in (q, k, v)]
    scores = a.scale * heads[0] @ heads[1].transpose(0, 1, 3, 2) + (0.0 if mask is None else mask)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ heads[2]
    return out.transpose(0, 2, 1, 3).reshape(a.batch * a.seq, -1)


@pytest.mark.parametrize("name", CASES)
def test_attention_matches_float64(name: str) -> None:
    a = CASES[name]
    layout = a.layout(-(-a.batch * a.seq // 4) * 4)
    q, k, v = (_RANDOM.standard_normal((a.batch * a.seq, a.heads * a.head_dim)).astype(np.float32) for _ in range(3))
    mask = None
    if a.mask_shape is not None:
        mask = np.where(_RANDOM.random(a.mask_shape) < 0.3, -10000.0, 0.0).astype(np.float32)
    inputs = [*(layout.to_physical(x) for x in (q, k, v)), *([] if mask is None else [mask])]
    y = run_remainder(attention_kernel(a, TARGET, "attention"), inputs, layout.physical_shape(()))
    assert np.isfinite(y).all()
    assert np.abs(layout.to_logical(y, q.shape) - _expected(a, q, k, v, mask)).max() < 1e-5


def test_attention_takes_fewer_queries_where_blocks_are_few() -> None:
    assert attention_kernel(Attention(1, 128, 12, 64, 0.125), TARGET, "attention").grid == (16, 12, 1)
    assert attention_kernel(Attention(8, 128, 12, 64, 0.125), TARGET, "attention").grid == (8, 12, 8)


def test_attention_refuses_what_it_cannot_do() -> None:
    assert attention_supported(Attention(4, 384, 12, 64, 0.125), TARGET)
    for a in (Attention(2, 13, 1, 8, 1.0), Attention(1, 9000, 1, 64, 1.0), Attention(1, 8, 1, 8, 1.0, (1, 8))):
        assert not attention_supported(a, TARGET)
        with pytest.raises(SparseTvmError, match="fused"):
            attention_kernel(a, TARGET, "attention")


@needs_nvcc
def test_attention_compiles_for_sm_90_without_spills(tmp_path: Path) -> None:
    for a in (Attention(1, 128, 12, 64, 0.125), Attention(1, 512, 12, 128, 0.125, (1, 1, 1, 512))):
        assert nvcc_faults(attention_kernel(a, TARGET, "attention"), tmp_path) == ""
