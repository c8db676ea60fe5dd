"""PyTorch calls timed as our kernels are: captured into a CUDA graph, which events surround."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from sparsetvm.measure.timing import TimeCalls

PRECISIONS = ("fp32", "tf32", "fp16")  # fp32 and tf32 store float32, fp16 stores float16
_WARM_UP = 3


@contextmanager
def precision(name: str) -> Any:
    """fp32 and fp16 products are exact in their type; tf32 rounds float32 operands to 10 bits of mantissa."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def dtype_of(name: str) -> str:
    """Type that tensors have in a precision."""
    return "float16" if name == "fp16" else "float32"


@dataclass(frozen=True)
class Captured:
    """A CUDA graph, and the calls in it: a graph does not keep the tensors that it reads and writes."""

    graph: Any
    run: Callable[[], object]

    def replay(self) -> None:
        """Put the graph's launches on the current stream."""
        self.graph.replay()


def capture(run: Callable[[], object], launches: int = 1) -> Captured:
    """A CUDA graph of `launches` calls, ready to be replayed. Choice of algorithms is done before.

    capture_begin and capture_end, because torch.cuda.graph collects garbage for a second each time.
    """
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(_WARM_UP):
            run()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        for _ in range(launches):
            run()
        graph.capture_end()
    graph.replay()
    torch.cuda.synchronize()
    return Captured(graph, run)


def time_replays(launch: Callable[[], object], calls: int = 1) -> TimeCalls:
    """Times `launch`, which puts `calls` calls on the default stream: seconds per call, the launches back to back."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def time_calls(number: int) -> float:
        launches = max(1, round(number / calls))
        begin.record()
        for _ in range(launches):
            launch()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3 / (launches * calls)

    return time_calls
