"""Launches -> functions of a Relax module: a host function that launches each, and their machine code as CUDA modules.

A host function takes tensors of any shape and hands their addresses, the scalars, the grid and the bytes of shared
memory to TVM's CUDA module, which asks the driver for more than 48 KB where needed. It contains nothing else: no
allocation, no synchronisation. So a CUDA graph can capture it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from sparsetvm.core.cuda_runtime import load_cuda_runtime
from sparsetvm.core.target import Target
from sparsetvm.errors import SparseTvmError
from sparsetvm.measure.nvcc import Source, compile_sources, kernel_symbol, launch_source
from sparsetvm.schedules.cuda.launch import Launch, TensorMap

# Order of the arguments after the scalars; TVM wants the tag of the shared memory last.
_LAUNCH_TAGS = ("blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x")
_OVERLAPS_TAG = "tirx.use_programtic_dependent_launch"  # TVM's spelling; takes no argument
_SHARED_TAG = "tirx.use_dyn_shared_memory"
# The last argument is a map, as TVM's runtime calls it; options of cuTensorMapEncodeTiled.
_TENSOR_MAP, _BOX_COLUMNS, _SWIZZLE_128B, _PROMOTION_256B = 1, 64, 3, 3
_OPAQUE = 8  # relax.OpPatternKind: nothing is fused with it


TensorSpec = tuple[tuple[int, ...], str]
"""Shape and dtype of an argument."""


class CudaKernels:
    """The kernels of one module. Launches with equal code share one; the host functions differ in scalars and grid."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._kernels: dict[str, tuple[Launch, tuple[str, ...]]] = {}

    def host_function(self, symbol: str, launch: Launch, tensors: Sequence[TensorSpec]) -> Any:
        """PrimFunc `symbol` that launches on its tensors: activations, packed arrays and the output, in this order."""
        from tvm.script.ir_builder import IRBuilder
        from tvm.tirx.script import builder as tb

        kernel = self._kernel(launch, len(tensors))
        with IRBuilder() as builder, tb.prim_func():
            tb.func_name(symbol)
            tb.func_attr({"global_symbol": symbol, "tirx.is_scheduled": True, "op_pattern": _OPAQUE})
            buffers = [tb.arg(f"a{at}", tb.buffer(shape, dtype)) for at, (shape, dtype) in enumerate(tensors)]
            pointers = [buffer.data for buffer in buffers]
            maps = [] if launch.map is None else [_encoded(launch.map, pointers[0])]
            geometry = (*launch.grid, launch.block, launch.shared)
            tb.evaluate(tb.call_packed(kernel, *pointers, *launch.scalars, *maps, *geometry))
        return builder.get()

    def modules(self) -> list[Any]:
        """Compile all kernels; runtime modules for the attribute "external_mods" of an IRModule."""
        load_cuda_runtime(to_run=False)
        cubins = compile_sources([launch_source(launch) for launch, _ in self._kernels.values()], self._target)
        return [
            _cuda_module(name, cubin, types, launch)
            for (name, (launch, types)), cubin in zip(self._kernels.items(), cubins, strict=True)
        ]

    def _kernel(self, launch: Launch, pointers: int) -> str:
        symbol = kernel_symbol(launch)
        types = ("handle",) * pointers + ("int32",) * len(launch.scalars) + ("handle",) * (launch.map is not None)
        known = self._kernels.setdefault(symbol, (launch, types))
        if known[1] != types:
            raise SparseTvmError(f"{launch.source} is called with {types} and with {known[1]}")
        return symbol


def _encoded(tensor_map: TensorMap, address: Any) -> Any:
    """A variable of the function that is built: the driver's description of the matrix at `address`."""
    from tvm.tirx import IntImm, Var
    from tvm.tirx.script import builder as tb

    found = Var("map", tb.handle("tensormap").ty)
    tb.Bind(tb.tvm_stack_alloca("tensormap", 1), var=found)
    sizes = (tensor_map.columns, tensor_map.rows, 2 * tensor_map.pitch)
    boxes = (_BOX_COLUMNS, tensor_map.box_rows, 1, 1)
    tb.evaluate(
        tb.tensormap_encode_tiled(
            found, address, *(IntImm("int64", size) for size in sizes), *(IntImm("int32", size) for size in boxes),
            descriptor_dtype="float16", rank=2, swizzle=_SWIZZLE_128B, l2_promotion=_PROMOTION_256B,
        )
    )  # fmt: skip
    return found


def _cuda_module(name: str, cubin: bytes, types: Sequence[str], launch: Launch) -> Any:
    import tvm
    import tvm_ffi

    tags = [*_LAUNCH_TAGS, *([_OVERLAPS_TAG] if launch.overlaps else []), _SHARED_TAG]
    info: dict[str, Any] = {"name": name, "arg_types": list(types), "launch_param_tags": tags}
    if launch.map is not None:
        info["arg_extra_tags"] = [0] * (len(types) - 1) + [_TENSOR_MAP]
    text = json.dumps({"tvm_version": tvm.__version__, "func_info": {name: info}})
    functions = tvm_ffi.get_global_func("runtime.LoadMetaDataFromJSON")(text)
    return tvm_ffi.get_global_func("ffi.Module.create.cuda")(cubin, "cubin", functions, {})


def use_our_compiler(target: Target) -> None:
    """Have TVM compile the kernels that it generates itself (operators without one of ours) as ours are compiled."""
    import tvm_ffi

    load_cuda_runtime(to_run=False)
    compile_one = functools.partial(_compile_text, target)
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_one, override=True)


def _compile_text(target: Target, code: str) -> bytes:
    return compile_sources([Source(code)], target)[0]
