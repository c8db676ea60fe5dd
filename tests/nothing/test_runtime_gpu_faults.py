"""A GPU that disappears, or that a kernel broke, under a model that runs: the machine's fault, not a bug."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsetvm.errors import EnvironmentProblem
from sparsetvm.runtime.cuda import CudaRun

LOST = "Check failed: (e == cudaSuccess) is false:\nCUDA: all CUDA-capable devices are busy or unavailable\n"


class Tensor:
    """Stands in for a tensor, or the device, of a GPU that works until it does not."""

    def __init__(self, fails: str, message: str) -> None:
        self._fails, self._message = fails, message

    def _work(self, name: str) -> None:
        if name == self._fails:
            raise RuntimeError(self._message)

    def copyfrom(self, array: np.ndarray) -> None:
        self._work("copy in")

    def numpy(self) -> np.ndarray:
        self._work("copy out")
        return np.zeros(1, np.float32)

    def sync(self) -> None:
        self._work("wait")


def broken_run(fails: str, message: str = LOST) -> CudaRun:
    run, tensor = CudaRun.__new__(CudaRun), Tensor(fails, message)
    run._number, run._device, run._inputs, run._outputs, run._infos = 0, tensor, [tensor], [tensor], [None]
    run._function = lambda *_: tensor._work("launch")
    return run


def whole(run: CudaRun) -> Any:
    result = run([np.zeros(1, np.float32)])
    run.wait()
    return result


@pytest.mark.parametrize("fails", ["copy in", "launch", "copy out", "wait"])
def test_gpu_that_fails_while_a_model_runs_is_an_environment_problem(fails: str) -> None:
    with pytest.raises(EnvironmentProblem, match="devices are busy or unavailable") as caught:
        whole(broken_run(fails))
    assert caught.value.exit_code == 4
    assert "nvidia-smi" in str(caught.value)
    assert "\n" not in caught.value.message


def test_what_is_no_fault_of_the_gpu_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"):
        whole(broken_run("launch", "shapes differ"))
    assert len(whole(broken_run("nothing"))) == 1
