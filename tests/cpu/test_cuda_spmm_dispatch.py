"""cuda.spmm_dispatch computes what numpy computes in float64 (in the emulator, so without a GPU)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from cuda_cases import H100, check_convolution, check_product, convolution, product, sparse
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sparsetvm.schedules.base import template
from sparsetvm.schedules.cuda.spmm_dispatch import Shape
from test_cuda_compiles import check_overlap, compile_sm90

from sparsetvm.core.config import Config
from sparsetvm.core.workload import ConvGeometry, Epilogue
from sparsetvm.formats.dispatch_stream import pack_dispatch_stream

TEMPLATE = template("cuda.spmm_dispatch")
SETTINGS = settings(
    max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
RELU = Epilogue(bias=True, activation="relu")


def config(rows: int, c: int, warps: int, chunk: int, parts: int = 1, copy: str = "bulk") -> Config:
    return Config.of(TEMPLATE.name, rows=rows, c=c, warps=warps, chunk=chunk, parts=parts, copy=copy)


PRODUCTS = [
    config(8, 8, 8, 32),
    config(4, 16, 8, 32, copy="async"),
    config(8, 8, 16, 64, parts=2, copy="async"),
    config(4, 8, 8, 64, parts=4),
]


@pytest.mark.parametrize("chosen", PRODUCTS, ids=lambda c: "_".join(str(v) for _, v in c.knobs))
def test_product_matches_float64_for_any_shape(chosen: Config) -> None:
    @SETTINGS
    @given(st.integers(1, 560), st.integers(1, 90), st.integers(2, 200), st.floats(0.02, 0.6), st.integers(0, 99))
    def check(n: int, m: int, k: int, density: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        weight = sparse(rng, (m, k), density)
        check_product(TEMPLATE, product(n, m, k, RELU, weight), chosen, weight, rng)

    check()


@pytest.mark.parametrize("parts", [1, 2])
def test_residual_and_activation_come_once_and_last(parts: int) -> None:
    rng = np.random.default_rng(0)
    weight = sparse(rng, (37, 70), 0.15)
    for epilogue in (Epilogue(bias=True, residual=True, activation="gelu"), Epilogue(residual=True)):
        check_product(TEMPLATE, product(260, 37, 70, epilogue, weight), config(4, 8, 8, 32, parts), weight, rng)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("parts", [1, 2])
def test_pointwise_convolution_writes_zeros_around_the_image(stride: int, parts: int) -> None:
    rng = np.random.default_rng(1)
    weight = sparse(rng, (12, 70), 0.3)
    conv = ConvGeometry(70, 29, 13, (1, 1), (stride, stride))
    workload = convolution(conv, 12, 2, Epilogue(bias=True, residual=True, activation="silu"), weight)
    check_convolution(TEMPLATE, workload, config(8, 8, 8, 32, parts, "async" if parts == 1 else "bulk"), weight, rng)


def test_no_entries_in_a_chunk_or_at_all_in_a_warp() -> None:
    rng = np.random.default_rng(2)
    weight = np.zeros((80, 256), np.float32)
    weight[70:, 200:] = rng.standard_normal((10, 56))
    check_product(TEMPLATE, product(256, 80, 256, RELU, weight), config(8, 8, 8, 32), weight, rng)


@SETTINGS
@given(st.integers(1, 60), st.integers(1, 90), st.floats(0.0, 1.0), st.integers(1, 3), st.integers(0, 99))
def test_stream_holds_each_entry_once_behind_the_offset_of_its_column(
    m: int, k: int, density: float, parts: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = np.where(rng.random((m, k)) < density, rng.standard_normal((m, k)), 0).astype(np.float32)
    warps, rows, chunk, row_bytes = 3, 4, 16, 512
    stream = pack_dispatch_stream(weight, chunk, row_bytes, warps, rows, parts)
    assert stream.chunks % parts == 0
    blocks = stream.blocks.reshape(-1, stream.chunks, stream.block_bytes // 4)
    found = np.zeros_like(weight)
    for tile, c, warp in np.ndindex(blocks.shape[0], stream.chunks, warps):
        words = blocks[tile, c]
        at = int(words[warp]) // 4
        offset = int(words[at])
        while True:
            at += 2
            value, code = words[at : at + 1].view(np.float32)[0], int(words[at + 1])
            if code == rows:
                break
            row = stream.rows[(tile * warps + warp) * rows + code % row_bytes]
            column = c * chunk + offset // row_bytes
            assert found[row, column] == 0
            found[row, column] = value
            if code >> 31:
                offset = (code & 0x7FFFFFFF) // row_bytes * row_bytes
        assert at + 4 <= words.size  # one entry is read ahead of the end
    np.testing.assert_array_equal(found, weight)


def test_every_point_of_the_space_fits_into_shared_memory() -> None:
    rng = np.random.default_rng(0)
    weight = sparse(rng, (300, 2000), 0.3)
    workload = product(784, 300, 2000, RELU, weight)
    space = TEMPLATE.space(workload, H100)
    assert space.contains(TEMPLATE.default(workload, H100))
    for point in space:
        packed = TEMPLATE.pack(weight, None, workload, point, H100)
        launch = TEMPLATE.kernel(workload, point, packed, H100, "kernel")
        assert launch.shared <= H100.shared
        assert dict(launch.defines)["SP_STAGES"] >= 2


def test_rows_are_halved_until_the_sums_of_a_thread_fit() -> None:
    assert Shape.of(config(8, 16, 8, 32)).rows == 8
    assert Shape.of(config(8, 16, 16, 32)).rows == 2


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
@pytest.mark.parametrize(
    "chosen",
    [
        config(8, 16, 8, 32),
        config(8, 16, 8, 32, copy="async"),
        config(8, 8, 16, 64, 2, "async"),
        config(4, 8, 16, 32),
    ],
)
def test_kernels_compile_for_sm90_without_spills(chosen: Config, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = sparse(rng, (128, 256), 0.1)
    workload = product(1024, 128, 256, Epilogue(bias=True, residual=True, activation="gelu"), weight)
    packed = TEMPLATE.pack(weight, None, workload, chosen, H100)
    launch = TEMPLATE.kernel(workload, chosen, packed, H100, "kernel")
    words = compile_sm90(launch, tmp_path / "kernel.cubin")
    assert "warning" not in words, words
    assert "0 bytes spill stores, 0 bytes spill loads" in words, words
    check_overlap((tmp_path / launch.path.with_suffix(".ptx").name).read_text())
