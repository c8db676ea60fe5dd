"""CUDA kernels that put images together channel by channel, and that resize them, against numpy."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from cuda_remainder_cases import TARGET, needs_nvcc, nvcc_faults, run_remainder
from sparsetvm.schedules.cuda.remainder.channels import channel_table, gather_channels_kernel
from sparsetvm.schedules.cuda.remainder.resize import resize_kernel, resize_tables

from sparsetvm.core.layout import PLAIN, AnyLayout, Planes
from sparsetvm.core.resampling import Resampling
from sparsetvm.core.workload import Epilogue
from sparsetvm.errors import SparseTvmError

SIZES = [((3, 5), (6, 10)), ((4, 33), (7, 40)), ((1, 1), (2, 19)), ((9, 40), (5, 30))]


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def _stored(layout: AnyLayout, x: np.ndarray) -> np.ndarray:
    return layout.to_physical(x) if isinstance(layout, Planes) else x


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("parts", [(2, 3, 1), (1,) * 40], ids=len)
def test_gathered_channels_are_those_of_the_table(parts: tuple[int, ...], activation: str | None) -> None:
    batch, height, width, pad = 2, 5, 7, 2
    images = [_normal(batch, count, height, width) for count in parts]
    planes = [Planes(batch, count, height, width, pad, 4) for count in parts]
    rng = np.random.default_rng(0)
    order = [(part, channel) for part, count in enumerate(parts) for channel in range(count)]
    channels = np.array([order[at] for at in rng.integers(0, len(order), len(order) + 2)])
    out = Planes(batch, len(channels), height, width, pad, 4)
    expected = np.stack([images[part][:, channel] for part, channel in channels], 1).astype(np.float64)
    scale, shift = _normal(len(channels)), _normal(2 + len(channels))[2:]
    if activation is not None:
        total = expected * scale[:, None, None] + shift[:, None, None]
        functions = {"none": total, "relu": np.maximum(total, 0), "sigmoid": 1 / (1 + np.exp(-total))}
        expected = functions[activation]
    epilogue = None if activation is None else Epilogue(activation=activation)  # type: ignore[arg-type]
    launch = gather_channels_kernel(planes, out, epilogue, TARGET, "gather")
    given = [layout.to_physical(x) for layout, x in zip(planes, images, strict=True)]
    factors = [] if activation is None else [scale, shift]
    y = run_remainder(launch, [*given, channel_table(channels, planes), *factors], out.physical_shape(()))
    np.testing.assert_allclose(y, out.to_physical(expected), atol=0 if activation is None else 1e-6)


def test_gathered_channels_of_other_planes_are_refused() -> None:
    out = Planes(1, 3, 5, 7, 2, 4)
    for part in (Planes(1, 3, 5, 7, 1, 4), Planes(1, 3, 5, 8, 2, 4), Planes(2, 3, 5, 7, 2, 4)):
        with pytest.raises(SparseTvmError, match="channels"):
            gather_channels_kernel([out, part], out, None, TARGET, "gather")


def _matrix(axis: Resampling) -> np.ndarray:
    first, second, weight = axis.neighbours()
    result = np.zeros((axis.size_out, axis.size_in))
    np.add.at(result, (np.arange(axis.size_out), first), 1 - weight)
    np.add.at(result, (np.arange(axis.size_out), second), weight)
    return result


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("sizes", SIZES)
def test_resize_matches_float64(sizes, mode: str) -> None:  # type: ignore[no-untyped-def]
    rows, columns = (
        Resampling(small, large, large / small, "half_pixel", mode) for small, large in zip(*sizes, strict=True)
    )
    shape, result = (2, 3, *sizes[0]), (2, 3, *sizes[1])
    x = _normal(*shape)
    expected = _matrix(rows) @ x.astype(np.float64) @ _matrix(columns).T
    for source, out in product((PLAIN, Planes(*shape, 2, 4)), (PLAIN, Planes(*result, 1, 4))):
        launch = resize_kernel(source, out, shape, rows, columns, TARGET, "resize")
        given = [_stored(source, x), *resize_tables(rows, columns, TARGET)]
        y = run_remainder(launch, given, out.physical_shape(result))
        np.testing.assert_allclose(y, _stored(out, expected), atol=0 if mode == "nearest" else 1e-6)


@needs_nvcc
def test_kernels_compile_for_sm_90_without_spills(tmp_path: Path) -> None:
    planes = Planes(2, 3, 8, 7, 1, 4)
    axes = Resampling(8, 16, 2.0), Resampling(7, 14, 2.0)
    launches = [
        gather_channels_kernel([planes] * 2, Planes(2, 6, 8, 7, 1, 4), None, TARGET, "gather"),
        gather_channels_kernel([planes] * 60, Planes(2, 180, 8, 7, 1, 4), Epilogue(activation="relu"), TARGET, "g"),
        resize_kernel(planes, Planes(2, 3, 16, 14, 1, 4), (2, 3, 8, 7), *axes, TARGET, "resize"),
        resize_kernel(PLAIN, PLAIN, (1, 1, 3, 5), Resampling(3, 3, 1.0), Resampling(5, 5, 1.0), TARGET, "resize"),
    ]
    assert [fault for fault in (nvcc_faults(launch, tmp_path) for launch in launches) if fault] == []
