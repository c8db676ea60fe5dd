"""A compiled `.so`, loaded: named numpy (or DLPack) arrays in, numpy arrays out.

A library for a GPU takes tensors on the GPU as well; its results then stay there.

A `.so` is code. Loading it runs it with the rights of this process: load only what you compiled yourself, or what comes
from somebody you trust. The manifest's hash finds a damaged or exchanged file, not a forged pair of files.

Only TVM's runtime is used here: with TVM_USE_RUNTIME_LIB=1 set before the first import, the compiler is never loaded.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sparsetvm.core.cuda_runtime import load_cuda_runtime
from sparsetvm.core.manifest import STATIC_MAIN, TensorInfo, bucket_main, read_manifest
from sparsetvm.core.results import Latency, LayerTime
from sparsetvm.core.target import Target
from sparsetvm.core.weights_file import map_weights, weights_path
from sparsetvm.errors import ModelError, UsageError, did_you_mean
from sparsetvm.runtime.arrays import checks_of, random_arrays
from sparsetvm.runtime.compare import latency_of
from sparsetvm.runtime.cpu import CpuBuckets, CpuRun, CpuRunOfAnyShape, buffers, buffers_for
from sparsetvm.runtime.cuda import CudaRun, gpu_lock, on_gpu
from sparsetvm.runtime.cuda_buckets import CudaBuckets
from sparsetvm.runtime.per_layer import kernel_times
from sparsetvm.runtime.threads import set_threads

_WARM_UP_RUNS = 3


class Module:
    """A loaded model; calls are serialised, so one Module may be shared by threads. On a GPU those of all modules are.
    On a CPU different modules run beside each other, each call with a thread pool of the calling thread.

    inputs, outputs: name, shape and dtype of each tensor. dynamic: the dimension whose size each call chooses (None
    without one); shapes then have its largest bucket there, at `axis`. manifest: the parsed one, {} when there is none.
    signature: the part of it that was checked, None without one; nothing here depends on the rest.
    notes: what the user should know about how it was loaded. Raises ModelError when the file cannot be loaded.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = {}
        self.inputs: list[TensorInfo] = []
        self.outputs: list[TensorInfo] = []
        self.notes: list[str] = []
        self._weights: list[Any] = []  # further arguments of the library's function, where they are not in it
        if not self.path.is_file():
            raise UsageError(f"'{path}' is no file", hint="sparsetvm compile MODEL -o m.so writes one")
        found = read_manifest(self.path)
        self.signature = found[1] if found else None
        self.dynamic = self.signature.dynamic if self.signature else None
        target = self.built_for
        on_cuda = target is not None and target.kind == "cuda"
        self._lock: AbstractContextManager[object] = gpu_lock if on_cuda else threading.Lock()
        with self._lock:
            largest = bucket_main(self.dynamic.buckets[-1]) if on_cuda and self.dynamic else "main"
            machine, arity = _load(self.path, target, largest)
        if found is None:
            self.inputs = [TensorInfo(f"input_{i}", (), "") for i in range(arity)]
            self.notes.append("no manifest beside the library: inputs and outputs have generic names, unchecked shapes")
            self.threads = threads or 1
        else:
            self.manifest, signature = found
            self.inputs, self.outputs = signature.inputs, signature.outputs
            self.threads = threads or signature.threads
            if signature.weights is not None:
                mapped = map_weights(weights_path(self.path), signature.weights.arrays)
                self._weights = list(map(_tensor, mapped))
            masks = len(self.dynamic.masks) if on_cuda and self.dynamic and self.dynamic.buckets[-1] > 1 else 0
            if len(self.inputs) + len(self._weights) + masks != arity:
                raise ModelError(
                    f"'{path}' takes {arity} inputs, its manifest names {len(self.inputs)}",
                    hint="compile the model again",
                )
        self._checked = found is not None
        self._input_names = [info.name for info in self.inputs]
        self._output_names = [info.name for info in self.outputs]
        self._checks = checks_of(self.inputs, self.dynamic, keep=on_gpu if on_cuda else None)
        self._gpu: CudaRun | CudaBuckets | None = None
        self._run: Callable[[Sequence[Any]], Sequence[Any]]
        if on_cuda:
            with self._lock:
                self._run = self._gpu = self._open_gpu(machine, target.device if target else 0)
            return
        real = set_threads(self.threads)
        if real < self.threads:
            self.notes.append(f"{self.threads} threads were asked for, TVM's pool has {real} here")
        self._run = self._open_cpu(machine)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run once on named arrays; the results are fresh arrays that later runs leave alone.

        inputs: numpy arrays, or CPU arrays that speak DLPack, of exactly the shapes and dtypes in `self.inputs`. For a
        GPU also tensors there; when all are, so are the results, which speak DLPack.
        Raises UsageError that names the input, what is expected and what was given. The values of integer inputs with a
        known `range` are checked, unless the tensor lies on a GPU: indices out of range give NaN there, or the last
        element of a table without floats.
        """
        outputs = self._outputs(self._in_order(inputs))
        if self._checked:
            return dict(zip(self._output_names, outputs, strict=True))
        return {f"output_{i}": array for i, array in enumerate(outputs)}

    @property
    def built_for(self) -> Target | None:
        """The target it was compiled for, None without a manifest."""
        return self.signature.target if self.signature else None

    def prepared(self, inputs: Mapping[str, Any]) -> Callable[[], object]:
        """A call that runs on `inputs`, for benchmarks: `run`, or on a GPU a run without any copy, waited for."""
        if self._gpu is None:
            return lambda: self.run(inputs)
        gpu, launch = self._gpu, self.launcher(inputs)

        def call() -> None:
            with self._lock:
                launch()
                gpu.wait()

        return call

    def launcher(self, inputs: Mapping[str, Any]) -> Callable[[], None]:
        """Copy `inputs` to the GPU; the call that comes back starts a run on them and does not wait for it.

        Raises UsageError for a model that runs on the CPU.
        """
        if self._gpu is None:
            raise UsageError("only models for a GPU can be launched", hint="use run()")
        gpu, given = self._gpu, self._checks(self._in_order(inputs))
        with self._lock:
            gpu.load(given)
            gpu.launch()  # the first run captures the graph
            gpu.wait()

        def launch() -> None:
            with self._lock:
                gpu.launch()

        return launch

    def _open_gpu(self, machine: Any, device: int) -> CudaRun | CudaBuckets:
        def open_run(function: str, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> CudaRun:
            return CudaRun(machine, device, inputs, outputs, function)

        if self.dynamic is None:
            return open_run(STATIC_MAIN, self.inputs, self.outputs)
        return CudaBuckets(open_run, self.inputs, self.outputs, self.dynamic)

    def _open_cpu(self, machine: Any) -> CpuRun | CpuRunOfAnyShape | CpuBuckets:
        if not self._checked:
            return CpuRunOfAnyShape(machine["main"])
        if self.dynamic is None:
            return CpuRun(machine["main"], buffers(self.inputs), self._weights)
        buckets = CpuBuckets(machine, self.inputs, self.outputs, self.dynamic)
        if missing := buckets.missing():
            raise ModelError(
                f"'{self.path}' lacks the function '{missing}' of its manifest", hint="compile the model again"
            )
        return buckets

    def _in_order(self, inputs: Mapping[str, Any]) -> list[Any]:
        names = self._input_names
        if len(inputs) == len(names):
            try:
                return [inputs[name] for name in names]
            except KeyError:
                pass
        for name in inputs:
            if name not in names:
                raise UsageError(f"no input '{name}'{did_you_mean(name, names)}", hint=f"inputs: {', '.join(names)}")
        for name in names:
            if name not in inputs:
                raise UsageError(f"input '{name}' is missing", hint=f"inputs: {', '.join(names)}")
        return [inputs[name] for name in names]

    def __call__(self, *arrays: Any) -> Any:
        """Run once on arrays in the model's order; one output comes back as an array, several as a tuple."""
        if len(arrays) != len(self.inputs):
            raise UsageError(
                f"the model takes {len(self.inputs)} inputs, {len(arrays)} were given",
                hint=f"in this order: {', '.join(info.name for info in self.inputs)}",
            )
        outputs = self._outputs(arrays)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _outputs(self, arrays: Sequence[Any]) -> Sequence[Any]:
        """The results of one run, for arrays in the model's order."""
        given = self._checks(arrays)
        with self._lock:
            if self._gpu is None:
                set_threads(self.threads)
            return self._run(given)

    def benchmark(self, inputs: Mapping[str, Any] | None = None, *, seconds: float = 1.0, repeats: int = 10) -> Latency:
        """Milliseconds per run on `inputs` (random ones when None): at least `repeats` runs and about `seconds`.

        The copies in and out, which every caller pays, are part of the time.
        """
        if inputs is None:
            inputs = self.random_inputs()
        for _ in range(_WARM_UP_RUNS):
            self.run(inputs)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < repeats or time.perf_counter() < end:
            begun = time.perf_counter()
            self.run(inputs)
            times.append((time.perf_counter() - begun) * 1e3)
        return latency_of(times)

    def per_layer(self, inputs: Mapping[str, Any] | None = None, *, seconds: float = 1.0) -> list[LayerTime]:
        """Median microseconds of each kernel on `inputs` (random ones when None), in the order of the calls.

        The library is loaded a second time for it. runtime/per_layer.py says what the times hold. Raises UsageError for
        a model on a GPU, which runs as one CUDA graph.
        """
        if self._gpu is not None:
            raise UsageError("a model on a GPU runs as one CUDA graph: its kernels have no times of their own here")
        if self.dynamic is not None:
            raise UsageError(
                "a model with buckets has kernels for each of them", hint="compile it with --shape for one size"
            )
        given = self._checks(self._in_order(inputs if inputs is not None else self.random_inputs()))
        with self._lock:
            set_threads(self.threads)
            machine, _ = _load(self.path, self.built_for)
            run = CpuRun(machine["main"], buffers_for(given), self._weights)
            run.load(given)
            kernels = self.signature.kernels if self.signature is not None else []
            return kernel_times(machine, run.call, kernels, seconds)

    def random_inputs(self, seed: int = 0, *, size: int | None = None) -> dict[str, np.ndarray]:
        """Standard normal float inputs; integers that the model admits (ids below the size of their table, masks of 0
        and 1), or zeros where nothing is known of them.

        size: of the dimension that is open, the largest bucket when None.
        """
        if not self._checked:
            raise UsageError("the shapes of the inputs are not known without a manifest", hint="pass inputs")
        return random_arrays([info if size is None else info.sized(size) for info in self.inputs], seed)

    def __enter__(self) -> Module:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the buffers; the module cannot run any more. (The process keeps the library's code mapped.)"""
        with self._lock:
            self._weights = []
            self._gpu = None
            self._run = _closed

    def __repr__(self) -> str:
        return f"Module({str(self.path)!r}, inputs={[info.name for info in self.inputs]}, threads={self.threads})"


def _load(path: Path, target: Target | None, function: str = "main") -> tuple[Any, int]:
    """The virtual machine of a library, ready to call, and the number of inputs of a function."""
    cuda = target is not None and target.kind == "cuda"
    if cuda:
        load_cuda_runtime(to_run=True)
    import tvm
    from tvm.runtime.vm import VirtualMachine

    try:
        device = tvm.cuda(target.device) if target is not None and cuda else tvm.cpu()
        with _loadable(path.resolve()) as library:
            machine = VirtualMachine(tvm.runtime.load_module(str(library)), device)
        return machine, int(machine.module["get_function_arity"](function))
    except Exception as error:
        # TVM raises RuntimeError, AttributeError, ValueError and its own types here; all mean the same to a user.
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"'{path}' cannot be loaded as a compiled model: {reason[0] if reason else type(error).__name__}",
            hint="it must be a .so written by `sparsetvm compile` for this kind of machine",
        ) from error


# Path -> the file that the dynamic linker knows by that path: device, inode, size and time of change.
_linked: dict[Path, tuple[int, ...]] = {}


@contextmanager
def _loadable(path: Path) -> Iterator[Path]:
    """A path that gives the code which `path` holds now.

    The dynamic linker takes a path that it loaded before for the same library, whatever was written there since: a
    model that is compiled again and loaded in the same process comes from a copy under a name of its own.
    """
    stat = os.stat(path)
    identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if _linked.setdefault(path, identity) == identity:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="sparsetvm-load-") as folder:
        yield Path(shutil.copy(path, folder))


def _closed(*_: Any) -> Any:
    raise UsageError("this module is closed", hint="load it again")


def _tensor(array: np.ndarray) -> Any:
    import tvm_ffi

    return tvm_ffi.from_dlpack(array)
