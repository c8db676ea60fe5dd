"""A product with row-major X[k, n] and Y[m, n]: packing, the kernel, unpacking, as a layer that stands alone needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsetvm.core.layout import PLAIN, AnyLayout, Tiled
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.measure.buffers import GuardedBuffer
from sparsetvm.measure.candidate import Trial
from sparsetvm.measure.compile import tvm_target

_SYMBOL = "sparsetvm_pack"


@dataclass(frozen=True)
class Packed:
    """run: packing, product and unpacking once. output: the same, and the result as (n, m)."""

    run: Callable[[], None]
    output: Callable[[], np.ndarray]


class Packing:
    """Builds each conversion once."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._built: dict[tuple[AnyLayout, AnyLayout], Any] = {}

    def around(self, trial: Trial, workload: Workload, x: np.ndarray) -> Packed | None:
        """The packed run of a built kernel on x (n, k); None where it reads row-major activations anyway."""
        source, result = workload.layout_in, workload.layout_out
        if not isinstance(source, Tiled) or not isinstance(result, Tiled):
            return None
        given = GuardedBuffer.of(np.ascontiguousarray(x.T)).array
        taken = GuardedBuffer((workload.m, workload.n), np.float32).array
        pack, unpack = self._convert(PLAIN, source, given.shape), self._convert(result, PLAIN, taken.shape)
        import tvm

        x_rows, y_rows = tvm.runtime.from_dlpack(given), tvm.runtime.from_dlpack(taken)

        def run() -> None:
            pack(x_rows, trial.x)
            trial.call()
            unpack(trial.y, y_rows)

        def output() -> np.ndarray:
            run()
            return np.ascontiguousarray(taken.T)

        return Packed(run, output)

    def _convert(self, source: AnyLayout, destination: AnyLayout, shape: tuple[int, ...]) -> Any:
        import tvm
        from sparsetvm.schedules.x86.remainder.convert import convert_kernel

        if (source, destination) not in self._built:
            function = convert_kernel(source, destination, shape, self._target, _SYMBOL, transposed=True)
            self._built[source, destination] = tvm.compile(function, target=tvm_target(self._target))[_SYMBOL]
        return self._built[source, destination]
