"""Times of the single kernels of a compiled model, taken while it runs.

TVM's virtual machine calls back before and after each of its calls; the kernels run in the model's order, each on what
the one before has written. A time holds the kernel and the way out of one callback and into the next. That way is
taken from calls of the same run that do nothing, and subtracted. What the callbacks themselves take lies between the
times; it cools the caches, so that kernels of a few microseconds may seem slower than they are.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparsetvm.core.results import LayerTime

_OURS, _RUNTIME = "sparsetvm_", "vm.builtin."
_NOTHING = "vm.builtin.null_value"  # the call that does least: what it takes is the callbacks
_WARM_UP, _MOST_RUNS = 3, 10_000


def kernel_times(
    machine: Any, run: Callable[[], object], kernels: Sequence[dict[str, str]], seconds: float, repeats: int = 10
) -> list[LayerTime]:
    """Times of the kernels that `run` calls on `machine`, in the order of their calls.

    kernels: of the manifest. The virtual machine must be used for nothing else: it keeps its callback.
    """
    calls: list[tuple[str, float]] = []
    begun = 0.0

    def instrument(_: object, symbol: str, before: bool, __: object, *___: object) -> int:
        nonlocal begun
        if not before:
            calls.append((symbol, time.perf_counter() - begun))
            return 0
        begun = time.perf_counter()  # last, so that converting the arguments is not in it
        return 0

    machine.set_instrument(instrument)
    runs: list[list[tuple[str, float]]] = []
    end = time.perf_counter() + seconds
    while len(runs) < repeats + _WARM_UP or (time.perf_counter() < end and len(runs) < _MOST_RUNS):
        calls.clear()
        run()
        runs.append(list(calls))
    return summarize_calls(runs[_WARM_UP:], kernels)


def summarize_calls(runs: Sequence[Sequence[tuple[str, float]]], kernels: Sequence[dict[str, str]]) -> list[LayerTime]:
    """Medians over runs; calls: (symbol, seconds), the same symbols in every run."""
    symbols = [symbol for symbol, _ in runs[0]]
    times = 1e6 * np.median([[taken for _, taken in run] for run in runs], axis=0)
    idle = [us for symbol, us in zip(symbols, times, strict=True) if symbol == _NOTHING]
    overhead = float(np.median(idle)) if idle else 0.0
    shown = [(symbol, float(us)) for symbol, us in zip(symbols, times, strict=True) if _RUNTIME not in symbol]
    names = _names([symbol for symbol, _ in shown], kernels)
    net = [max(0.0, us - overhead) for _, us in shown]
    total = sum(net) or 1.0
    return [
        LayerTime(name=name, op=op, kernel=symbol, us=us, share=us / total)
        for (name, op), (symbol, _), us in zip(names, shown, net, strict=True)
    ]


def _names(symbols: Sequence[str], kernels: Sequence[dict[str, str]]) -> list[tuple[str, str]]:
    """(layer, operator) of each call; TVM's own kernels, and all where the manifest does not fit, by their symbols."""
    ours = [symbol for symbol in symbols if symbol.startswith(_OURS)]
    chunks = len(ours) // max(len(kernels), 1)
    known = [*kernels] * chunks
    fits = [kernel["symbol"] for kernel in known] == ours
    following = iter(known)
    calls, seen = Counter(kernel["name"] for kernel in known), Counter[str]()
    names = []
    for symbol in symbols:
        if fits and symbol.startswith(_OURS):
            kernel = next(following)
            seen[kernel["name"]] += 1
            part = f" (chunk {seen[kernel['name']]})" if calls[kernel["name"]] > 1 else ""
            names.append((kernel["name"] + part, kernel["op"]))
        else:
            names.append((symbol, "TVM" if not symbol.startswith(_OURS) else ""))
    return names
