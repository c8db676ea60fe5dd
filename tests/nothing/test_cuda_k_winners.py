"""The k-winners kernel for GPUs against a sort, its ties as ONNX has them for TopK (in the emulator)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from cuda_remainder_cases import TARGET, needs_nvcc, nvcc_faults, run_remainder
from k_winners_cases import winners
from sparsetvm.schedules.cuda.remainder.k_winners import k_winners_kernel

from sparsetvm.core.layout import PLAIN, Planes


def check(x: np.ndarray, k: int, ties: str) -> None:
    launch = k_winners_kernel(x.shape, k, ties, TARGET, "kernel")  # type: ignore[arg-type]
    np.testing.assert_array_equal(run_remainder(launch, [x], x.shape), winners(x, k, ties))


def spread(kind: str, n: int) -> np.ndarray:
    """Rows that bins of equal width divide well, badly or not at all."""
    rng = np.random.default_rng(n)
    normal = rng.standard_normal((2, n))
    normal[1] = np.exp(20 * normal[1] if kind == "skewed" else normal[1])
    found = {
        "normal": normal,
        "skewed": normal,
        "constant": np.full((2, n), 3.0),
        "two values": np.where(normal > 0, 1.0, 2.0),
        "outlier": np.where(np.arange(n) == 7, 3e38, normal),
        "wide": np.where(normal > 0, 3e38, -3e38) * rng.random((2, n)),
        "narrow": 1.0 + 1e-6 * normal,
        "subnormal": 1e-43 * normal,
        "infinite": np.where(rng.random((2, n)) < 0.05, np.inf, normal),
    }
    return found[kind].astype(np.float32)


@pytest.mark.parametrize("ties", ["first", "all"])
@pytest.mark.parametrize(("shape", "k"), [((1, 1), 1), ((3, 7), 2), ((2, 48), 47), ((4, 150), 18), ((50,), 50)])
def test_k_largest_of_every_row_stay(shape: tuple[int, ...], k: int, ties: str) -> None:
    check(np.random.default_rng(k).standard_normal(shape).astype(np.float32), k, ties)


@pytest.mark.parametrize("ties", ["first", "all"])
@pytest.mark.parametrize("n", [45, 17000])
def test_ties_are_kept_as_asked(ties: str, n: int) -> None:
    """The longer rows do not fit into registers."""
    x = np.random.default_rng(0).integers(-2, 3, (4, n)).astype(np.float32)
    x[0], x[1] = 0, -1
    x[2, ::2] = -0.0
    check(x if n < 100 else x[1:], n // 4, ties)


def test_extremes_keep_their_order() -> None:
    tiny, huge = np.float32(1e-45), np.float32(3.4e38)
    x = np.array([[-np.inf, -huge, -tiny, 0.0, tiny, 1.0, huge, np.inf, -1.0]], np.float32)
    for k in (1, 2, 4, 9):
        check(x, k, "first")


def test_nan_of_either_sign_wins_and_stays() -> None:
    x = np.arange(20, dtype=np.float32)[None]
    x[0, 3], x[0, 9] = np.nan, np.copysign(np.float32(np.nan), np.float32(-1))
    check(x, 4, "first")


@pytest.mark.parametrize("ties", ["first", "all"])
@pytest.mark.parametrize(
    "kind", ["normal", "skewed", "constant", "two values", "outlier", "wide", "narrow", "subnormal", "infinite"]
)
def test_any_spread_of_values_is_searched_through(kind: str, ties: str) -> None:
    check(spread(kind, 300), 40, ties)


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("sides", ["both", "in", "out"])
def test_images_keep_the_winners_of_all_their_planes(sides: str, padding: int) -> None:
    shape = (2, 5, 6, 7)
    planes = Planes(*shape, padding, TARGET.lanes)
    source, out = (planes if sides in ("both", side) else PLAIN for side in ("in", "out"))
    x = np.random.default_rng(0).integers(-9, 10, shape).astype(np.float32)
    launch = k_winners_kernel(shape, 31, "first", TARGET, "kernel", axis=1, layouts=(source, out))
    physical = x if source is PLAIN else planes.to_physical(x)
    y = run_remainder(launch, [physical], out.physical_shape(shape))
    expected = winners(x.reshape(2, -1), 31, "first").reshape(shape)
    np.testing.assert_array_equal(y, expected if out is PLAIN else planes.to_physical(expected))


@needs_nvcc
@pytest.mark.parametrize("n", [1500, 12544, 20000])
def test_kernel_compiles_for_sm_90_without_spills(n: int, tmp_path: Path) -> None:
    assert nvcc_faults(k_winners_kernel((1, n), 1000, "first", TARGET, "kernel"), tmp_path) == ""


@needs_nvcc
def test_kernel_for_images_compiles_for_sm_90_without_spills(tmp_path: Path) -> None:
    planes = Planes(1, 64, 14, 14, 2, TARGET.lanes)
    launch = k_winners_kernel((1, 64, 14, 14), 1000, "first", TARGET, "kernel", axis=1, layouts=(planes, planes))
    assert nvcc_faults(launch, tmp_path) == ""


@needs_nvcc
@pytest.mark.parametrize("planes", [False, True])
def test_no_value_is_read_as_constant(planes: bool, tmp_path: Path) -> None:
    """ptxas moves such loads (ld.global.nc) in front of the wait for the kernel that writes the values."""
    layout = Planes(1, 64, 14, 14, 0, 4) if planes else PLAIN
    launch = k_winners_kernel((1, 64, 14, 14), 1192, "first", TARGET, "kernel", axis=1, layouts=(layout, layout))
    out, macros = tmp_path / "kernel.ptx", [f"-D{name}={value}" for name, value in launch.defines]
    subprocess.run(["nvcc", "-std=c++17", "-O3", "-arch=sm_90", "-ptx", *macros, "-o", out, launch.path], check=True)
    text = out.read_text()
    assert "griddepcontrol.wait" in text
    assert "ld.global.f32" in text
    assert "ld.global.nc" not in text
