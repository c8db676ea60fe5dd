"""Candidates for a GPU: config -> launch and cubin -> checked and timed on the device. Runs inside a worker process."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.errors import SparseTvmError
from sparsetvm.measure.compile import FindTemplate, arrays_path, packed_kernel
from sparsetvm.measure.cuda_device import Device, DeviceBuffer, Kernel
from sparsetvm.measure.cuda_timing import L2Flush, time_cold_launches, time_graph
from sparsetvm.measure.nvcc import compile_sources, kernel_symbol, launch_source
from sparsetvm.measure.protocol import Reply
from sparsetvm.measure.reference import TOLERANCE, Reference, inputs_of, output_shape
from sparsetvm.measure.timing import TimeCalls
from sparsetvm.measure.verdict import check_all, judge
from sparsetvm.schedules.cuda.launch import Launch


@dataclass(frozen=True)
class CudaBuilt:
    """A compiled launch. `arrays` are its packed arguments."""

    launch: Launch
    cubin: bytes
    arrays: tuple[np.ndarray, ...]
    seconds: float


def build_cuda(task: Task, config: Config, target: Target, find: FindTemplate) -> CudaBuilt:
    """Compile the config. Raises InvalidConfig, or CompileError with the compiler's words."""
    start = time.perf_counter()
    launch, packed = packed_kernel(task, config, target, find)
    if not isinstance(launch, Launch):
        raise SparseTvmError(f"template '{config.template}' returns no launch")
    (cubin,) = compile_sources([launch_source(launch)], target, jobs=1)
    return CudaBuilt(launch, cubin, packed.arrays, time.perf_counter() - start)


def save_cuda(built: CudaBuilt, library: Path) -> None:
    """Write the launch and its machine code to `library`, the arrays beside it."""
    library.write_bytes(msgspec.msgpack.encode((asdict(built.launch), built.cubin)))
    np.savez(arrays_path(library), *built.arrays)


def load_cuda(library: Path) -> CudaBuilt:
    """Load what `save_cuda` wrote."""
    launch, cubin = msgspec.msgpack.decode(library.read_bytes(), type=tuple[Launch, bytes])
    with np.load(arrays_path(library), allow_pickle=False) as stored:
        arrays = tuple(stored[f"arr_{i}"] for i in range(len(stored.files)))
    return CudaBuilt(launch, cubin, arrays, 0.0)


@functools.cache
def open_device(number: int) -> Device:
    """The device of this worker."""
    return Device(number)


class CudaTrial:
    """A built candidate with its buffers on the device; the same interface as `candidate.Trial`."""

    def __init__(
        self, built: CudaBuilt, references: Sequence[Reference], target: Target, tolerance: float = TOLERANCE
    ) -> None:
        first = references[0]
        workload = first.workload
        self._references, self._tolerance = references, tolerance
        self._device = open_device(target.device)
        self._inputs = [DeviceBuffer.of(array) for array in inputs_of(first)]
        kind = np.float16 if workload.layout_out.half else np.float32
        self._y = DeviceBuffer(workload.layout_out.physical_shape(output_shape(workload)), kind)
        self._arrays = [(DeviceBuffer.of(array), array) for array in built.arrays]
        self._buffers = [*self._inputs, *(buffer for buffer, _ in self._arrays), self._y]
        launch = built.launch
        self._kernel = Kernel(
            self._device,
            built.cubin,
            kernel_symbol(launch),
            grid=launch.grid,
            block=launch.block,
            shared=launch.shared,
            cluster=launch.cluster,
            overlaps=launch.overlaps,
            pointers=[buffer.address for buffer in self._buffers],
            scalars=launch.scalars,
            tensor_map=launch.map,
        )

    def check(self) -> Reply:
        """Run on the inputs of each reference and poisoned output, and compare everything that can be compared.

        The inputs of the first are left in the buffers. Called again after timing: blocks that race may be right once.
        """
        return check_all(self._references, self._checked)

    def timer(self, flush: L2Flush | None) -> TimeCalls:
        """Times warm calls in a CUDA graph, or with `flush` cold ones."""
        if flush is not None:
            return time_cold_launches(self._device, self._kernel, flush, self._inputs)
        return time_graph(self._device, self._kernel)

    def _checked(self, reference: Reference) -> Reply:
        for buffer, array in zip(self._inputs, inputs_of(reference), strict=True):
            buffer.write(array)
        self._y.poison()
        self._kernel.launch()
        self._device.wait()
        if not all(buffer.intact() for buffer in self._buffers):
            return Reply("wrong_answer", message="the kernel wrote outside its buffers")
        originals = [*zip(self._inputs, inputs_of(reference), strict=True), *self._arrays]
        if not all(np.array_equal(buffer.read(), array) for buffer, array in originals):
            return Reply("wrong_answer", message="the kernel changed what it reads")
        return judge(reference, self._y.read(), self._tolerance)
