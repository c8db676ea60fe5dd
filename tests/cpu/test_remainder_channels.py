"""Channels of several images put together in planes."""

from __future__ import annotations

import numpy as np
import pytest
from remainder_cases import TARGETS, compile_kernel, run_kernel, with_threads
from sparsetvm.schedules.x86.remainder.channels import channel_table, gather_channels_kernel

from sparsetvm.core.layout import Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Epilogue
from sparsetvm.errors import SparseTvmError


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [1, 2])
def test_gathered_channels_are_those_of_the_table(threads: int, target: Target) -> None:
    rng, counts = np.random.default_rng(0), (3, 1, 4)
    images = [rng.standard_normal((2, count, 5, 7)).astype(np.float32) for count in counts]
    planes = [Planes(2, count, 5, 7, 2, target.lanes) for count in counts]
    order = [(part, channel) for part, count in enumerate(counts) for channel in range(count)]
    channels = np.array([order[at] for at in rng.integers(0, len(order), 11)])
    out = Planes(2, 11, 5, 7, 2, target.lanes)
    kernel = gather_channels_kernel(planes, out, None, with_threads(target, threads), "kernel")
    given = [layout.to_physical(x) for layout, x in zip(planes, images, strict=True)]
    y = run_kernel(compile_kernel(kernel, target), [*given, channel_table(channels, planes)], out.physical_shape(()))
    expected = np.stack([images[part][:, channel] for part, channel in channels], 1)
    np.testing.assert_array_equal(y, out.to_physical(expected))


def test_planes_of_other_sizes_and_normalisations_are_refused() -> None:
    target, out = Target("cpu", "skylake-avx512", "avx512"), Planes(1, 3, 5, 7, 2, 16)
    for part, epilogue in ((Planes(1, 3, 5, 7, 1, 16), None), (out, Epilogue())):
        with pytest.raises(SparseTvmError, match="channels of"):
            gather_channels_kernel([part], out, epilogue, target, "kernel")
