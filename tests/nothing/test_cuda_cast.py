"""The CUDA conversions between float16 and float32: every float16, every kind of rounding, and whole networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from cuda_remainder_cases import TARGET, needs_nvcc, nvcc_faults
from emulator import run_launch
from emulator.network import run_network
from float16 import half_inputs, rounded, to_float16
from models import bert, conv_net, mlp, relative_error, run_onnxruntime
from sparsetvm.schedules.cuda.remainder.cast import cast_kernel

from sparsetvm.core.target import parse_target
from sparsetvm.rewrite.prepare import prepare
from sparsetvm.search.candidates import candidates_of

NETWORKS = {
    "mlp": lambda: mlp(batch=9),
    "residual network": lambda: conv_net(batch=2, size=9),
    "encoder": lambda: bert(batch=2, seq=12),
}


def cast(x: np.ndarray) -> np.ndarray:
    narrow = x.dtype == np.float32
    y = np.full(x.shape, np.nan, np.float16 if narrow else np.float32)
    run_launch(cast_kernel(x.size, narrow, TARGET, "cast"), [x, y])
    return y


def test_every_float16_keeps_its_value() -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(cast(x), x.astype(np.float32))


def test_float32_becomes_the_nearest_float16() -> None:
    """Ties to even, numbers below the normal ones, zeros with a sign, overflow, infinities and NaN."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / 2
    others = np.array([0.0, 65519.996, 65520.0, 1e30, np.inf, np.nan, 1e-30, 2.0**-25], np.float32)
    x = np.concatenate([ties, np.nextafter(ties, 0), np.nextafter(ties, np.inf), others]).astype(np.float32)
    x = np.concatenate([x, -x])
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    found = cast(x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found[~np.isnan(x)]), np.signbit(expected[~np.isnan(x)]))


@pytest.mark.parametrize("count", [1, 3, 4, 515])
def test_odd_numbers_of_elements(count: int) -> None:
    x = np.linspace(-3, 3, count, dtype=np.float32)
    np.testing.assert_array_equal(cast(x), x.astype(np.float16))
    np.testing.assert_array_equal(cast(x.astype(np.float16)), x.astype(np.float16).astype(np.float32))


@needs_nvcc
@pytest.mark.parametrize("narrow", [False, True])
def test_cast_compiles(narrow: bool, tmp_path: Path) -> None:
    assert nvcc_faults(cast_kernel(1000, narrow, TARGET, "cast"), tmp_path) == ""


@pytest.mark.parametrize("name", NETWORKS)
def test_float16_network_of_launches(name: str, tmp_path: Path) -> None:
    """All conversions are kernels, and outputs are the exact ones, rounded once."""
    target = parse_target("cuda,sm_90")
    builder = rounded(NETWORKS[name]())
    model = to_float16(builder.model())
    onnx.save(model, tmp_path / "m.onnx")
    prepared = prepare(tmp_path / "m.onnx", target)
    configs = {layer: candidates_of(task.workload, target).choices[0].default for layer, task in prepared.tasks.items()}
    inputs = half_inputs(model)
    found, launches = run_network(prepared.graph, prepared.tasks, configs, target, inputs)
    casts = [node for node in prepared.graph.nodes if node.is_op("Cast")]
    assert len(casts) == len(model.graph.input) + len(model.graph.output)
    assert launches >= len(prepared.tasks) + len(casts)
    expected = run_onnxruntime(builder.model(), {at: array.astype(np.float32) for at, array in inputs.items()})
    for value, wanted in zip(found, expected.values(), strict=True):
        assert value.dtype == np.float16
        assert relative_error(value, wanted) < 6e-4
