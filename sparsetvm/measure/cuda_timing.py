"""Timing of a kernel on a GPU by events around CUDA graphs of many launches.

A launch costs the host 2 us and more, as long as a small kernel runs; in a graph the GPU starts one kernel after the
other by itself, as it does in a compiled network. So a graph is what is timed, warm (weights and activations in L2), or
cold, one launch at a time after L2 was overwritten.
"""

from __future__ import annotations

import ctypes
import math
import statistics
from collections.abc import Sequence

from sparsetvm.core.cuda_driver import call
from sparsetvm.measure.cuda_device import Device, DeviceBuffer, Event, Graph, Kernel, Memory
from sparsetvm.measure.timing import TimeCalls

_LAUNCHES = 50  # of one graph: what happens between two graphs is then below 2 % of the time
_GRAPH_SECONDS = 2e-3  # of a graph: longer kernels need fewer launches for that
_TRIES = 3
_MOST_COLD_CALLS = 25


def time_graph(device: Device, kernel: Kernel) -> TimeCalls:
    """Times warm calls, in graphs of equally many launches whatever number is asked for: were some of them launched one
    by one, what the host takes for that would count, and more or less of it by the number that happened to be planned.
    """
    begin, end = device.events()

    def seconds(graph: Graph, times: int) -> float:
        begin.record()
        for _ in range(times):
            graph.launch()
        end.record()
        return end.seconds_since(begin)

    def many(launches: int) -> Graph:
        def record() -> None:
            for _ in range(launches):
                kernel.launch()

        graph = Graph(device, record)
        graph.launch()  # the first launch uploads it
        device.wait()
        return graph

    single = many(1)
    alone = min(seconds(single, 1) for _ in range(_TRIES))
    launches = max(1, min(_LAUNCHES, math.ceil(_GRAPH_SECONDS / max(alone, 1e-9))))
    graph = single if launches == 1 else many(launches)

    def time_calls(number: int) -> float:
        graphs = max(1, round(number / launches))
        return seconds(graph, graphs) / (graphs * launches)

    return time_calls


class L2Flush:
    """Memory that is overwritten before each cold call, twice as large as L2."""

    def __init__(self, l2_bytes: int) -> None:
        self._memory = Memory(2 * l2_bytes)

    def launch(self, device: Device) -> None:
        address, size = ctypes.c_uint64(self._memory.address), ctypes.c_size_t(self._memory.nbytes)
        call("cuMemsetD8Async", address, ctypes.c_ubyte(0), size, device.stream)


def time_cold_launches(device: Device, kernel: Kernel, flush: L2Flush, warm: Sequence[DeviceBuffer]) -> TimeCalls:
    """Times single launches after `flush`; the buffers `warm`, which the layer before has just written, are in L2.

    The events add about 1 us, to all candidates alike.
    """
    scratch = Memory(max(buffer.nbytes for buffer in warm))

    def time_once(begin: Event, end: Event) -> None:
        flush.launch(device)
        for buffer in warm:
            source, size = ctypes.c_uint64(buffer.address), ctypes.c_size_t(buffer.nbytes)
            call("cuMemcpyDtoDAsync_v2", ctypes.c_uint64(scratch.address), source, size, device.stream)
        begin.record()
        kernel.launch()
        end.record()

    def time_calls(number: int) -> float:
        pairs = [device.events() for _ in range(min(number, _MOST_COLD_CALLS))]
        for begin, end in pairs:
            time_once(begin, end)
        return statistics.median(end.seconds_since(begin) for begin, end in pairs)

    return time_calls
