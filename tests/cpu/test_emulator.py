"""The emulator of CUDA kernels finds what it says it finds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from emulator import EmulatorError, run_launch
from sparsetvm.schedules.cuda.epilogue import epilogue_defines
from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.workload import Activation, Epilogue


class Sample(Launch):
    """A launch of a kernel in samples.cu."""

    @property
    def path(self) -> Path:
        return Path(__file__).parents[1] / "emulator" / "samples.cu"


def sample(entry: str, block: int, scalar: int, *defines: tuple[str, int], **more: int) -> Sample:
    return Sample("samples.cu", entry, defines, (more.pop("blocks", 1), 1, 1), block, scalars=(scalar,), **more)


def arrays(size: int) -> list[np.ndarray]:
    return [np.random.default_rng(0).standard_normal(size).astype(np.float32), np.zeros(size, np.float32)]


def test_emulator_runs_threads_up_to_a_barrier() -> None:
    x, y = arrays(61)
    run_launch(sample("reverse", 64, 61, ("SP_BARRIER", 1)), [x, y])
    np.testing.assert_array_equal(y, x[::-1])


def test_emulator_finds_a_missing_barrier() -> None:
    with pytest.raises(EmulatorError, match="order in which threads run"):
        run_launch(sample("reverse", 64, 61), arrays(61))


def test_emulator_finds_accesses_out_of_bounds() -> None:
    with pytest.raises(EmulatorError, match=r"out of bounds: byte 64 of argument 0 \(64 bytes\)"):
        run_launch(sample("past_the_end", 16, 16), arrays(16))


def test_emulator_finds_writes_in_the_slack_behind_an_array() -> None:
    x, y = arrays(6)
    with pytest.raises(EmulatorError, match="written outside"):
        run_launch(sample("past_the_end", 6, 0), [x, y[:5].copy()])


def test_emulator_finds_threads_that_wait_at_different_places() -> None:
    with pytest.raises(
        EmulatorError, match="deadlock: 16 threads at __syncthreads, 0 at a cluster barrier, 16 at a shu"
    ):
        run_launch(sample("diverges", 32, 16), arrays(32))


def test_emulator_finds_a_missing_wait_for_a_copy() -> None:
    x, y = arrays(64)
    run_launch(sample("copies", 16, 40, ("SP_WAIT", 1), shared=256), [x, y])
    np.testing.assert_array_equal(y, np.where(np.arange(64) < 40, x, 0))
    run_launch(sample("copies", 16, 40, shared=256), [x, y])
    assert np.isnan(y).all()


def test_emulator_finds_too_little_shared_memory() -> None:
    with pytest.raises(EmulatorError, match="out of bounds"):
        run_launch(sample("copies", 16, 40, ("SP_WAIT", 1), shared=128), arrays(64))


def test_emulator_finds_a_wrong_number_of_arguments() -> None:
    with pytest.raises(EmulatorError, match="takes 3 arguments, the launch gives 2"):
        run_launch(sample("copies", 16, 40, shared=256), arrays(64)[:1])


def test_emulator_shuffles_within_warps() -> None:
    x, y = arrays(64)
    run_launch(sample("warp_sums", 64, 64), [x, y])
    np.testing.assert_allclose(y.reshape(2, 32), np.repeat(x.reshape(2, 32).sum(1), 32).reshape(2, 32), rtol=1e-5)


def test_emulator_shares_memory_within_clusters() -> None:
    x, y = arrays(2 * 4 * 8 * 4)
    run_launch(sample("cluster_sums", 8, 8, ("SP_CLUSTER", 4), blocks=8, shared=128, cluster=4), [x, y])
    want = x.reshape(2, 4, 32).sum(1, keepdims=True).repeat(4, 1)
    np.testing.assert_allclose(y.reshape(2, 4, 32), want, rtol=1e-5, atol=1e-6)


def activated(x: float, epilogue: Epilogue) -> float:
    match epilogue.activation:
        case "relu":
            return max(x, 0.0)
        case "clip":
            return min(max(x, epilogue.low), epilogue.high)
        case "gelu":
            return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
        case "gelu_tanh":
            return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        case "sigmoid":
            return 1 / (1 + math.exp(-x))
        case "silu":
            return x / (1 + math.exp(-x))
        case "hard_swish":
            return x * min(max(x / 6 + 0.5, 0.0), 1.0)
    return x


@pytest.mark.parametrize("activation", ["none", "relu", "clip", "gelu", "gelu_tanh", "sigmoid", "silu", "hard_swish"])
def test_activations_are_exact(activation: Activation) -> None:
    epilogue = Epilogue(activation=activation, low=-0.3, high=0.7)
    x, y = arrays(64)
    x *= 3
    defines = (*epilogue_defines(epilogue), ("SP_BARRIER", 1))
    run_launch(Sample("samples.cu", "reverse", defines, (1, 1, 1), 64, scalars=(64,)), [x, y])
    want = [activated(float(v), epilogue) for v in x[::-1]]
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=2e-7)
