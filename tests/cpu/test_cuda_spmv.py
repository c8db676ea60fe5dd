"""cuda.spmv computes what numpy computes in float64 (in the emulator, so without a GPU)."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases import H100, check_product, launch, product, sparse
from sparsetvm.schedules.base import template

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Epilogue
from sparsetvm.formats.lane_rows import pack_lane_rows

TEMPLATE = template("cuda.spmv")
EPILOGUES = [Epilogue(), Epilogue(bias=True, residual=True, activation="gelu")]


@pytest.mark.parametrize("n", range(1, 9))
def test_few_tokens_match_float64_for_any_shape(n: int) -> None:
    rng = np.random.default_rng(n)
    chosen = Config.of(TEMPLATE.name, lanes=(8, 16, 32)[n % 3], warps=4, ahead=(1, 8, 2, 4)[n % 4])
    for _ in range(6):
        m, k = (int(v) for v in rng.integers(1, 300, 2))
        weight = sparse(rng, (m, k), float(rng.uniform(0.02, 0.6)))
        weight[0, 0] = 1
        workload = product(n, m, k, EPILOGUES[n % 2], weight, plain=True)
        assert TEMPLATE.matches(workload, H100)
        check_product(TEMPLATE, workload, chosen, weight, rng)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_values_that_are_float16_are_stored_so_and_widened_exactly(n: int) -> None:
    rng = np.random.default_rng(n)
    weight = sparse(rng, (70, 150), 0.2).astype(np.float16).astype(np.float32)
    weight[0, :3] = [2.0**-24, -65504, 2.0**-14]  # subnormal, largest, smallest normal
    workload = product(n, 70, 150, EPILOGUES[1], weight, plain=True)
    chosen = Config.of(TEMPLATE.name, lanes=8, warps=4, ahead=2)
    packed = TEMPLATE.pack(weight, None, workload, chosen, H100)
    assert packed.arrays[0].dtype == np.uint16
    check_product(TEMPLATE, workload, chosen, weight, rng)
    weight[1] *= np.float32(1.0001)
    assert TEMPLATE.pack(weight, None, workload, chosen, H100).arrays[0].dtype == np.float32


@pytest.mark.parametrize("ahead", [1, 2, 8])
@pytest.mark.parametrize("n", [1, 3])
def test_infinity_reaches_only_rows_that_use_its_column(n: int, ahead: int) -> None:
    """Steps are filled up with zero weights: they must read columns that their row uses anyway."""
    rng = np.random.default_rng(0)
    weight = sparse(rng, (16, 90), 0.5)
    weight[1:, 0] = 0
    workload = product(n, 16, 90, EPILOGUES[0], weight, plain=True)
    x = rng.standard_normal((n, 90)).astype(np.float32)
    x[:, 0] = np.inf
    chosen = Config.of(TEMPLATE.name, lanes=8, warps=4, ahead=ahead)
    got = launch(TEMPLATE, workload, chosen, weight, None, x, None).reshape(n, 16)
    assert np.isfinite(got[:, 1:]).all()
    assert not np.isfinite(got[:, 0]).any()


def test_x_that_does_not_fit_into_shared_memory_is_read_where_it_lies() -> None:
    rng = np.random.default_rng(0)
    weight = sparse(rng, (9, 700), 0.1)
    workload = product(8, 9, 700, EPILOGUES[1], weight, plain=True)
    small = Target("cuda", "x86-64-v3", "sm_90", sms=132, shared=16 << 10)
    packed = TEMPLATE.pack(weight, None, workload, TEMPLATE.default(workload, small), small)
    assert TEMPLATE.kernel(workload, TEMPLATE.default(workload, small), packed, small, "kernel").shared == 0
    weight = sparse(rng, (5, 70000), 0.002)
    weight[0] = weight[1]  # a full row of this length would lose digits
    workload = product(1, 5, 70000, EPILOGUES[0], weight, plain=True)
    check_product(TEMPLATE, workload, Config.of(TEMPLATE.name, lanes=8, warps=4, ahead=1), weight, rng)


def test_default_is_a_point_of_the_space() -> None:
    rng = np.random.default_rng(0)
    for n, m, k in ((1, 10, 20), (1, 512, 4096), (1, 4096, 300), (8, 4096, 300)):
        workload = product(n, m, k, EPILOGUES[0], sparse(rng, (m, k), 0.1), plain=True)
        assert TEMPLATE.space(workload, H100).contains(TEMPLATE.default(workload, H100))


@pytest.mark.parametrize("lanes", [8, 16, 32])
def test_lanes_that_read_together_mostly_hit_different_banks(lanes: int) -> None:
    rng = np.random.default_rng(0)
    weight = np.zeros((16, 4096), np.float32)
    for row in weight:
        row[rng.permutation(4096)[:400]] = 1
    packed = pack_lane_rows(weight, lanes, 32)

    def reads(array: np.ndarray) -> np.ndarray:
        """Of a warp, which has 32 / lanes rows side by side."""
        warps = array.reshape(-1, 32 // lanes, packed.most_steps, lanes, 4)
        return warps.transpose(0, 2, 4, 1, 3).reshape(-1, 32)

    pairs = zip(reads(packed.columns) % 32, reads(packed.values) != 0, strict=True)
    conflicts = [np.bincount(banks[used]).max() for banks, used in pairs if used.any()]
    assert np.mean(conflicts) < 2.0  # columns in their own order: 3.2; rows that all begin at the same bank: 2.2, 3.7
