"""The session of a worker that measures on a GPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsetvm.core.config import Config
from sparsetvm.core.cuda_driver import CudaError
from sparsetvm.core.record import Conditions, Status
from sparsetvm.errors import EnvironmentProblem
from sparsetvm.measure.candidate import Session
from sparsetvm.measure.conditions import read_gpu_conditions
from sparsetvm.measure.cuda_candidate import CudaBuilt, CudaTrial, build_cuda, load_cuda, save_cuda
from sparsetvm.measure.cuda_timing import L2Flush
from sparsetvm.measure.timing import time_repeats

# Of the time with L2 in the other state, which nothing is decided by.
_OTHER_REPEATS, _OTHER_SECONDS = 1, 0.02


class ContextLost(BaseException):
    """The GPU's context is gone and only the end of the process helps: no handler of exceptions may stop this one.

    The measuring process sees a worker that died while it ran this candidate, and starts another.
    """


class MachineFault(BaseException):
    """The GPU or the CUDA compiler is not there any more: no fault of the candidate. Ends the worker, and the tune."""


@contextmanager
def _told_apart() -> Iterator[None]:
    """Errors that end this process leave as what they are."""
    try:
        yield
    except CudaError as problem:
        if problem.gone:
            raise MachineFault(f"the GPU has gone: {problem}") from problem
        if problem.sticky:
            raise ContextLost(str(problem)) from problem
        raise
    except EnvironmentProblem as problem:
        raise MachineFault(problem.message) from problem


class CudaSession(Session):
    """Builders compile machine code and never touch the GPU; a context is made for the first candidate that runs."""

    _l2_flush: L2Flush | None = None

    def _flush(self) -> Any:
        return self._open_flush() if self._task.workload.cold else None

    def _open_flush(self) -> L2Flush:
        if self._l2_flush is None:
            with _told_apart():
                self._l2_flush = L2Flush(self._target.l2)
        return self._l2_flush

    def _conditions(self) -> Conditions:
        return read_gpu_conditions(self._target.device)

    def _other_us(self, trial: Any) -> float | None:
        with _told_apart():
            timer = trial.timer(None if self._task.workload.cold else self._open_flush())
            return statistics.median(time_repeats(timer, _OTHER_REPEATS, _OTHER_SECONDS))

    def _trial(self, built: Any, config: Config) -> Any:
        with _told_apart():
            return CudaTrial(built, self._references, self._target, self._find(config.template).tolerance)

    def _built(self, config: Config, library: str | None) -> Any:
        if library is not None:
            return load_cuda(Path(library))
        return self._compiled(config)

    def _build_library(self, config: Config, library: Path) -> float:
        built = self._compiled(config)
        save_cuda(built, library)
        return built.seconds

    def _compiled(self, config: Config) -> CudaBuilt:
        return build_cuda(self._task, config, self._target, self._find)

    def _guarded(self, status: Status, step: Callable[[], Any]) -> Any:
        def checked() -> Any:
            with _told_apart():
                return step()

        return super()._guarded(status, checked)
