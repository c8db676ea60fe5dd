"""How many tiles a block of the default config has."""

from __future__ import annotations

import numpy as np
import pytest
from sparsetvm.schedules.base import template

from sparsetvm.analysis.patterns import summarize
from sparsetvm.core.layout import Tiled
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Epilogue, Workload

TARGET = Target("cpu", "znver5", "avx512", l1=48 << 10, l2=1 << 20)


@pytest.mark.parametrize(
    ("shape", "tokens", "tiles"),
    [
        pytest.param((1024, 1024), 784, 8, id="code beyond L2 runs over eight tiles at a time"),
        pytest.param((1024, 1024), 208, 13, id="few tiles are one block"),
        pytest.param((128, 256), 784, 16, id="code in L2: activations of a block take a quarter of it"),
    ],
)
def test_default_block_of_tiles(shape: tuple[int, int], tokens: int, tiles: int) -> None:
    weight = (np.random.default_rng(0).random(shape) < 0.1).astype(np.float32)
    layouts = Tiled(tokens, shape[1], 16), Tiled(tokens, shape[0], 16)
    workload = Workload("matmul", *shape, tokens, *layouts, Epilogue(), summarize(weight))
    assert template("x86.pattern_code").default(workload, TARGET).int("tiles") == tiles
