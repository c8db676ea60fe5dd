"""x86.pattern_data on outputs so large that they and the residual are prefetched."""

from __future__ import annotations

import numpy as np
import pytest
from sparsetvm.schedules.base import template
from test_matmul_templates import TARGETS, run, sparse

from sparsetvm.core.layout import Planes, PlaneTiles, Tiled
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload

SUMMARY = PatternSummary("unstructured", (1, 1), 0.1, 1.0, 1, "0")
EPILOGUE = Epilogue(residual=True, activation="relu")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("k_block", [64, 90])
def test_large_product_with_residual_matches_float64(target: Target, k_block: int) -> None:
    n, m, k = 131, 1030, 90
    rng = np.random.default_rng(0)
    weight = sparse(rng, (m, k), 0.1)
    x, r = (rng.standard_normal((n, size)).astype(np.float32) for size in (k, m))
    lin, lout = Tiled(n, k, target.lanes), Tiled(n, m, target.lanes)
    workload = Workload("matmul", m, k, n, lin, lout, EPILOGUE, SUMMARY)
    data = template("x86.pattern_data")
    config = data.default(workload, target).replace(k_block=k_block)
    got = run(data, workload, config, target, weight, None, lin.to_physical(x), lout.to_physical(r))
    want = np.maximum(x @ weight.T.astype(np.float64) + r, 0)
    assert np.linalg.norm(lout.to_logical(got, (n, m)) - want) < 1e-5 * np.linalg.norm(want)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", [Planes, PlaneTiles])
def test_large_image_with_residual_matches_float64(target: Target, kind: type[Planes] | type[PlaneTiles]) -> None:
    side, m = 41, 80
    rng = np.random.default_rng(1)
    weight = sparse(rng, (m, 12), 0.3)
    x, r = (rng.standard_normal((1, size, side, side)).astype(np.float32) for size in (12, m))
    lin, lout = (kind(1, channels, side, side, 1, target.lanes) for channels in (12, m))
    conv = ConvGeometry(12, side, side, (1, 1))
    workload = Workload("conv2d", m, 12, side * side, lin, lout, EPILOGUE, SUMMARY, conv)
    data = template("x86.pattern_data")
    got = run(
        data, workload, data.default(workload, target), target, weight, None, lin.to_physical(x), lout.to_physical(r)
    )
    want = np.maximum(np.einsum("mc,bchw->bmhw", weight.astype(np.float64), x) + r, 0)
    assert np.linalg.norm(lout.to_logical(got, want.shape) - want) < 1e-5 * np.linalg.norm(want)
    np.testing.assert_array_equal(got, lout.to_physical(lout.to_logical(got, want.shape)))
