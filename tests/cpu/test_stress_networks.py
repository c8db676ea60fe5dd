"""Random networks of scripts/stress_networks.py, and that it finds what is wrong."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from checklib import isolated
from checklib.isolated import call_isolated
from checklib.running_error import running_error
from models import ModelBuilder, random_inputs, run_onnxruntime
from random_networks import MORE_FROM
from sparsetvm.schedules.x86.remainder import pooling
from stress_networks import check_network, save_failure

from sparsetvm.core.target import cpu_flags
from sparsetvm.frontend.load import load_model

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")
WITH_AVERAGE = 14  # a network with an average pool
UNDERFLOWS = 853  # one whose softmax has outputs of 1e-69, where the kernels' exp ends at exp(-87)
BIAS_FIRST = 4693


@pytest.mark.parametrize("first", [0, 6, 12, MORE_FROM])
def test_random_networks_stay_within_their_bounds(first: int) -> None:
    for seed in range(first, first + 6):
        assert check_network(seed)["of_bound"] <= 1.0


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Averages that divide by one more."""
    right = pooling._WindowPlane._scaled
    monkeypatch.setattr(
        pooling._WindowPlane, "_scaled", lambda self, value, x, rows: right(self, value, x, rows) * np.float32(0.9999)
    )
    with pytest.raises(AssertionError, match="is off from"):
        check_network(WITH_AVERAGE)


def test_bound_holds_for_float32_and_is_of_use(tmp_path: Path) -> None:
    b = ModelBuilder("net", seed=2)
    x = b.relu(b.gemm(b.input("x", (5, 64)), 64, 48, sparsity=0.5))
    b.op("Softmax", b.gelu(b.gemm(x, 48, 9)), out="y", axis=-1)
    model = b.output("y").model()
    inputs = random_inputs(model)
    value, bound = running_error(load_model(b.save(tmp_path / "m.onnx")).graph, inputs)["y"]
    error = np.abs(run_onnxruntime(model, inputs)["y"] - value)
    assert (error <= bound).all()
    assert bound.max() < 1e-3


@pytest.mark.parametrize("seed", [UNDERFLOWS, BIAS_FIRST])
def test_what_float32_may_do_is_no_mismatch(seed: int) -> None:
    """Found by thousands of networks: underflow, and a small sum that is added to a large bias term by term."""
    assert check_network(seed)["of_bound"] <= 1.0


def test_a_failure_is_saved_with_its_inputs(tmp_path: Path) -> None:
    save_failure(tmp_path / "failed", 3, "what went wrong")
    assert {path.name for path in (tmp_path / "failed").iterdir()} == {"3.onnx", "3.npz", "3.txt"}


def misbehave(item: str) -> str:
    if item == "crash":
        os.abort()
    while item == "hang":
        pass
    if item == "stuck":
        time.sleep(60)
    if item == "raise":
        raise ValueError("on purpose")
    return item.upper()


def test_crashes_and_hangs_are_outcomes_of_their_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_STUCK", 8)
    items = iter(["fine", "crash", "raise", "stuck", "hang", "last"])
    outcomes = {outcome.item: outcome for outcome in call_isolated(misbehave, items, jobs=2, timeout=1)}
    assert (outcomes["fine"].result, outcomes["last"].result) == ("FINE", "LAST")
    assert outcomes["crash"].error == "crash: exit code -6"
    assert "on purpose" in outcomes["raise"].error
    assert outcomes["hang"].error == "timeout: 1 s of CPU time"
    assert outcomes["stuck"].error == "timeout: 8 s"
