"""What the tests of kernels in float16 share: products whose weights have structure, run on the emulator."""

from __future__ import annotations

import msgspec
import numpy as np
from cuda_remainder_cases import TARGET, launch_layer
from sparsetvm.schedules.base import Template

from sparsetvm.analysis.patterns import summarize
from sparsetvm.core.config import Config
from sparsetvm.core.layout import HalfTiled, Tiled
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.measure.reference import inputs_of, make_reference
from sparsetvm.measure.verdict import judge

FULL = Epilogue(bias=True, residual=True, activation="relu")


def blocks(m: int, k: int, block: tuple[int, int], kept: float = 0.3, seed: int = 0) -> np.ndarray:
    """An (m, k) weight of blocks, those of the first row of blocks and of the last column empty."""
    rng = np.random.default_rng(seed)
    r, c = block
    grid = rng.random((-(-m // r), -(-k // c))) < kept
    grid[0] = grid[:, -1] = False
    grid[-1, 0] = True
    weight = rng.standard_normal((m, k)) * np.kron(grid, np.ones(block))[:m, :k]
    return weight.astype(np.float32)


def two_four(m: int, k: int, seed: int = 0) -> np.ndarray:
    """An (m, k) weight with two non-zeros of every four columns, some with fewer and a row with none."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((m, k)).astype(np.float32)
    order = rng.random((m, -(-k // 4), 4)).argsort(axis=2).reshape(m, -1)[:, :k]
    weight[order >= 2] = 0
    weight[m // 2] = 0
    weight[:, :3] = 0
    return weight


def half_product(
    weight: np.ndarray, n: int, epilogue: Epilogue = FULL, x_half: bool = True, y_half: bool = True,
    pattern: PatternSummary | None = None,
) -> Workload:  # fmt: skip
    """A product of n tokens that may be multiplied in float16. pattern: instead of what the weight shows."""
    (m, k), lanes = weight.shape, -(-n // 8) * 8
    lin, lout = ((HalfTiled if half else Tiled)(n, size, lanes) for half, size in ((x_half, k), (y_half, m)))
    return Workload("matmul", m, k, n, lin, lout, epilogue, pattern or summarize(weight), fp16=True)


def named(kind: str, block: tuple[int, int], density: float) -> PatternSummary:
    """A pattern for weights too small to show theirs."""
    return PatternSummary(kind, block, density, 1.0, 0, "d")  # type: ignore[arg-type]


def check_half(template: Template, workload: Workload, weight: np.ndarray, config: Config) -> float:
    """Run one config on the emulator and compare with float64; the relative L2 error."""
    assert template.matches(workload, TARGET)
    assert template.space(workload, TARGET).contains(config)
    rng = np.random.default_rng(1)
    bias = rng.standard_normal(workload.m).astype(np.float32) if workload.epilogue.bias else None
    reference = make_reference(workload, weight, bias)
    y = launch_layer(template, workload, config, weight, bias, inputs_of(reference))
    reply = judge(reference, y, template.tolerance)
    assert reply.status == "ok", (config, reply.message)
    assert reply.error is not None
    return reply.error


def whole_numbers(template: Template, workload: Workload, weight: np.ndarray, config: Config) -> None:
    """Small whole numbers survive all rounding: a factor that meets another partner would show at any tolerance."""
    rng = np.random.default_rng(2)
    whole = np.where(weight != 0, rng.integers(1, 5, weight.shape), 0).astype(np.float32)
    x = rng.integers(-4, 5, (workload.n, workload.k)).astype(np.float32)
    bare = msgspec.structs.replace(workload, epilogue=Epilogue())
    physical = bare.layout_in.to_physical(x.astype(np.float16 if bare.layout_in.half else np.float32))
    y = launch_layer(template, bare, config, whole, None, [physical])
    np.testing.assert_array_equal(bare.layout_out.to_logical(y, (bare.n, bare.m)), x @ whole.T)
