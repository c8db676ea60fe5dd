"""How many tiles a block of the default config has."""

from __future__ import annotations

import msgspec
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


ZEN4 = Target("cpu", "znver4", "avx512", l1=32 << 10, l2=1 << 20)


@pytest.mark.parametrize("tokens", [16, 128])
def test_default_streams_code_where_the_core_can(tokens: int) -> None:
    weight = (np.random.default_rng(0).random((1024, 1024)) < 0.1).astype(np.float32)
    layouts = Tiled(tokens, 1024, 16), Tiled(tokens, 1024, 16)
    workload = Workload("matmul", 1024, 1024, tokens, *layouts, Epilogue(), summarize(weight))
    code = template("x86.pattern_code")
    streamed, pieces = code.default(workload, ZEN4), code.default(workload, TARGET)
    assert (streamed.int("groups"), streamed.str("prefetch")) == (64, "sums")
    assert pieces.str("prefetch") == "next"
    # The activations of a K block stay in L1 beside the weights that stream through it.
    assert 4 * 16 * streamed.int("k_block") <= ZEN4.l1 * 3 // 4
    cold = msgspec.structs.replace(workload, cold=True)
    assert code.default(cold, ZEN4).str("prefetch") == "next"
    pattern = msgspec.structs.replace(workload.pattern, density=0.5)
    large = msgspec.structs.replace(workload, m=4096, pattern=pattern)
    assert (code.default(large, ZEN4).int("groups"), code.default(large, ZEN4).str("prefetch")) == (8, "next")
