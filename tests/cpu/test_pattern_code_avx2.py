"""The AVX2 code of two tiles at once: odd numbers of tiles, several images, masks, threads, every kind of epilogue."""

from __future__ import annotations

import numpy as np
import pytest
from sparsetvm.schedules.base import template
from test_matmul_templates import AVX2, activate, conv_reference, run, sparse

from sparsetvm.core.config import Config
from sparsetvm.core.layout import Tiled
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import Target, cpu_flags
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.formats import pattern_asm_avx2
from sparsetvm.rewrite.plane_geometry import conv_layouts, required_pad

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="no AVX2 here")
SUMMARY = PatternSummary("unstructured", (1, 1), 0.3, 1.0, 1, "0")


def two_tiles(workload: Workload, target: Target, **knobs: int | str) -> Config:
    config = template("x86.pattern_code").default(workload, target).replace(rows=6, k_block=workload.k, **knobs)
    assert pattern_asm_avx2.tiles_at_once(config.int("rows")) == 2
    return config


@pytest.mark.parametrize(
    "epilogue",
    [
        Epilogue(bias=True, activation="relu"),
        Epilogue(residual=True, activation="clip", low=-0.5, high=1.5),
        Epilogue(bias=True, residual=True, activation="sigmoid"),
    ],
    ids=lambda e: e.activation,
)
def test_convolution_of_an_odd_number_of_tiles_matches_float64(epilogue: Epilogue) -> None:
    conv, m, batch = ConvGeometry(4, 7, 7, (3, 3), pads=(1, 1, 1, 1)), 20, 3
    rng = np.random.default_rng(0)
    weight4 = sparse(rng, (m, 4, 3, 3), 0.3)
    x = rng.standard_normal((batch, 4, 7, 7)).astype(np.float32)
    bias = rng.standard_normal(m).astype(np.float32)
    lin, lout = conv_layouts(conv, batch, m, required_pad(conv), AVX2.lanes)
    assert lout.tiles % 2 == 1
    residual = rng.standard_normal((batch, m, 7, 7)).astype(np.float32)
    want = conv_reference(x, weight4, conv) + (bias[:, None, None] if epilogue.bias else 0)
    want = activate(want + (residual if epilogue.residual else 0), epilogue)
    workload = Workload("conv2d", m, 36, batch * 49, lin, lout, epilogue, SUMMARY, conv)
    for order in ("k", "rows"):
        config = two_tiles(workload, AVX2, order=order)
        got = run(
            template("x86.pattern_code"), workload, config, AVX2, weight4.reshape(m, 36),
            bias if epilogue.bias else None, lin.to_physical(x),
            lout.to_physical(residual) if epilogue.residual else None,
        )  # fmt: skip
        assert np.linalg.norm(lout.to_logical(got, want.shape) - want) < 1e-5 * np.linalg.norm(want)
        np.testing.assert_array_equal(got, lout.to_physical(lout.to_logical(got, want.shape)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("prefetch", ["next", "none"])
def test_tile_blocks_of_an_odd_size_match_float64(prefetch: str, threads: int) -> None:
    n, m, k = 67, 31, 90
    rng = np.random.default_rng(1)
    weight = sparse(rng, (m, k), 0.2)
    x, r = (rng.standard_normal((n, size)).astype(np.float32) for size in (k, m))
    lin, lout = Tiled(n, k, 8), Tiled(n, m, 8)
    epilogue = Epilogue(residual=True, activation="gelu")
    workload = Workload("matmul", m, k, n, lin, lout, epilogue, SUMMARY, threads=threads)
    target = Target(AVX2.kind, AVX2.mcpu, AVX2.isa, threads)
    want = activate(x @ weight.T.astype(np.float64) + r, epilogue)
    config = two_tiles(workload, target, prefetch=prefetch, tiles=lin.tiles, groups=1)
    got = run(
        template("x86.pattern_code"), workload, config, target, weight, None, lin.to_physical(x), lout.to_physical(r)
    )
    assert np.linalg.norm(lout.to_logical(got, (n, m)) - want) < 1e-5 * np.linalg.norm(want)


def test_nan_survives_relu_and_stays_in_its_position() -> None:
    n, m, k = 24, 9, 12
    weight = sparse(np.random.default_rng(2), (m, k), 0.9)
    x = np.ones((n, k), np.float32)
    x[5] = np.nan
    lin, lout = Tiled(n, k, 8), Tiled(n, m, 8)
    workload = Workload("matmul", m, k, n, lin, lout, Epilogue(activation="relu"), SUMMARY)
    config = two_tiles(workload, AVX2)
    got = run(template("x86.pattern_code"), workload, config, AVX2, weight, None, lin.to_physical(x), None)
    used = (weight != 0).any(1)
    bad = np.isnan(lout.to_logical(got, (n, m)))
    np.testing.assert_array_equal(bad, np.outer(np.arange(n) == 5, used))
