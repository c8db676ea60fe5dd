"""What the CUDA templates expect of their configs, beside times of an H200."""

from __future__ import annotations

import math

import pytest
from sparsetvm.schedules.base import template

from sparsetvm.core.config import Config
from sparsetvm.core.layout import Tiled
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.search.candidates import candidates_of

H200 = Target("cuda", "x86-64-v3", "sm_90", l2=50 << 20, host=False, sms=132, shared=227 << 10)
CLOCK = 1980  # clocks of a microsecond


def product(m: int, k: int, n: int, density: float = 0.1) -> Workload:
    pattern = PatternSummary("unstructured", (1, 1), density, 1.3, 0, "0")
    return Workload("matmul", m, k, n, Tiled(n, k, n), Tiled(n, m, n), Epilogue(), pattern)


def spmm_data(nt: int, rows: int, warps: int, chunk: int, parts: int = 1) -> Config:
    knobs = {"nt": nt, "c": 4, "rows": rows, "warps": warps, "chunk": chunk, "parts": parts, "stages": 2, "batch": 2}
    return Config.of("cuda.spmm_data", **knobs)


def spmm_rows(rows: int, parts: int, unroll: int, warps: int) -> Config:
    knobs = {"nt": 32, "c": 4, "unroll": unroll, "rows": rows, "warps": warps, "parts": parts, "slices": 1}
    return Config.of("cuda.spmm_rows", **knobs, x="shared", entries="ring")


def spmm_code(rows: int) -> Config:
    return Config.of("cuda.spmm_code", rows=rows, groups=1, threads=32, v=1, stage=0)


def us(workload: Workload, config: Config) -> float:
    clocks = template(config.template).estimate(workload, config, H200)
    assert clocks is not None
    return clocks / CLOCK


MEASURED = [
    (product(64, 32, 12544), spmm_data(64, 4, 8, 32), 3.72),
    (product(256, 128, 784), spmm_data(32, 4, 16, 128), 3.86),
    (product(256, 256, 784), spmm_data(32, 2, 16, 256), 3.78),
    (product(512, 512, 32), spmm_data(32, 1, 8, 512), 2.79),
    (product(768, 768, 128), spmm_data(32, 2, 16, 768), 3.70),
    (product(4096, 4096, 32), spmm_data(32, 4, 16, 512, 2), 15.16),
    (product(256, 128, 784), spmm_rows(128, 1, 4, 16), 3.66),
    (product(3072, 768, 128), spmm_rows(128, 1, 4, 32), 10.66),
    (product(4096, 4096, 32, 0.05), spmm_rows(64, 2, 8, 16), 9.40),
    (product(4096, 4096, 32, 0.05), spmm_rows(0, 4, 8, 16), 9.11),
    (product(4096, 4096, 32, 0.05), spmm_data(32, 4, 16, 512, 2), 9.58),
    (product(1024, 1024, 32), spmm_data(32, 1, 8, 1024), 4.31),
    (product(64, 32, 12544), spmm_code(32), 2.45),
    (product(128, 64, 3136), spmm_code(32), 2.34),
    (product(128, 128, 3136), spmm_code(32), 2.91),
]


@pytest.mark.parametrize(("workload", "config", "time_us"), MEASURED, ids=lambda value: str(value)[:60])
def test_estimates_are_near_what_was_measured(workload: Workload, config: Config, time_us: float) -> None:
    assert us(workload, config) == pytest.approx(time_us, rel=0.25)


def test_a_warp_with_fewer_rows_is_estimated_faster_where_k_is_one_chunk() -> None:
    two, four = (us(product(256, 256, 784), spmm_data(32, rows, 16, 256)) for rows in (2, 4))
    assert two < four
    two, four = (us(product(768, 768, 128), spmm_data(32, rows, 16, 768)) for rows in (2, 4))
    assert two < four


@pytest.mark.parametrize("name", ["cuda.spmm_data", "cuda.spmm_rows", "cuda.spmm_code", "cuda.dense"])
def test_every_config_has_an_estimate_and_the_default_about_the_smallest(name: str) -> None:
    found, workload = template(name), product(128, 64, 784)
    estimates = [found.estimate(workload, config, H200) for config in found.space(workload, H200)]
    assert all(value is not None and value > 0 for value in estimates)
    least = min(value for value in estimates if value is not None)
    default = found.estimate(workload, found.default(workload, H200), H200)
    assert default is not None
    assert math.isfinite(default)
    assert default <= 1.05 * least


def test_the_pattern_in_code_is_the_default_of_small_layers_only() -> None:
    sizes = [(64, 32, 12544), (128, 64, 3136), (128, 128, 3136), (256, 256, 784), (512, 512, 784)]
    chosen = [candidates_of(product(*size), H200).default.template for size in sizes]
    assert chosen[:3] == ["cuda.spmm_code"] * 3
    assert "cuda.spmm_code" not in chosen[3:]


def test_layers_larger_than_what_was_measured_do_not_start_with_rows_against_l1() -> None:
    rows = template("cuda.spmm_rows")
    assert rows.preferred(product(256, 128, 784), H200)
    assert not rows.preferred(product(4096, 4096, 1024), H200)
