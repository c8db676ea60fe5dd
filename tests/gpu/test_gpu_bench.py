"""Competitors of the kernel benchmark compute what our layers compute."""

from __future__ import annotations

import numpy as np
import pytest
from benchlib.case import matmul_task
from benchlib.suites import random_weight
from gpu_tools import needs_gpu

from sparsetvm.core.target import parse_target
from sparsetvm.measure.reference import make_reference, to_physical

pytestmark = needs_gpu


@pytest.mark.parametrize(("block", "n"), [(16, 128), (32, 40)])
def test_block_products_in_triton_are_right_and_timed(block: int, n: int) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    from benchlib.gpu_competitors import gpu_competitors

    weight = random_weight((256, 512), 0.9, 0, f"block:{block}x{block}")
    task = matmul_task("p", n, lambda: weight, parse_target("cuda"))
    x = np.random.default_rng(0).standard_normal((n, 512)).astype(np.float32)
    expected = make_reference(task.workload, weight, None, 0, x)
    found = gpu_competitors(task, x, ["triton-block", "triton-block-tf32"])
    assert {competitor.name for competitor in found} == {"triton-block", "triton-block-tf32"}
    for competitor in found:
        assert expected.error(to_physical(task.workload.layout_out, competitor.y)) < 3e-3, competitor.name
        assert 0 < competitor.timer(100) < 1e-3
