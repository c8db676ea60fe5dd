"""Graph -> Relax module for a GPU: the same nodes, kernels as launches, and a function that is one CUDA graph.

"main" is what any caller may use: inputs in, fresh outputs out. TVM captures what lies between the first kernels, which
read the caller's tensors, and the last ones. "main_static" takes inputs and outputs that lie in the same place at every
call and writes into the latter; all of it is one CUDA graph. sparsetvm's runtime calls this one.
Both call the same kernels with the same weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from sparsetvm.build.cuda_kernels import CudaKernels, TensorSpec
from sparsetvm.build.emit import Emission, Emitted, KernelCall, Library
from sparsetvm.build.network import Network
from sparsetvm.core.graph import Node, Value
from sparsetvm.core.manifest import STATIC_MAIN, bucket_main
from sparsetvm.core.target import Target
from sparsetvm.errors import SparseTvmError
from sparsetvm.schedules.cuda.copy import copy_launch
from sparsetvm.schedules.cuda.launch import Launch

# TVM's CUDA graph rewriter takes parameters beyond the first `num_input` as fixed in memory.
_ALL_FIXED = {"num_input": 0}


class CudaEmission(Emission):
    """Kernels are `Launch`es; a host function is made for each launch and the shapes that it is called with."""

    def __init__(self, *args: Any, like: CudaEmission | None = None) -> None:
        """like: an emission into the same library, whose kernels are used again."""
        super().__init__(*args)
        self._cuda: CudaKernels = like._cuda if like else CudaKernels(self.target)
        self._hosts: dict[object, Any] = like._hosts if like else {}
        self._out_params: list[Any] = []  # of the function that is emitted, when it has any
        self._written: set[int] = set()  # outputs that a kernel wrote where the caller wants them
        uses = Counter(name for node in self.graph.nodes for name in node.inputs)
        self._reused = {name for name in self.graph.inputs if uses[name] > 1}

    def run(self) -> Emitted:
        self.functions("main", STATIC_MAIN)
        return self.finish()

    def functions(self, fresh: str, static: str) -> None:
        """Add the function that returns fresh outputs and the one whose tensors stay in place."""
        self.function(fresh, self.parameters())
        self._out_params = [self.variable(f"output_{at}", name) for at, name in enumerate(self.graph.outputs)]
        self.function(static, [*self.parameters(), *self._out_params], _ALL_FIXED)

    def finish(self) -> Emitted:
        """The module with all that was emitted."""
        module = self.builder.finalize()
        return Emitted(module.with_attr("external_mods", self._cuda.modules()), len(self._hosts), self.order, [])

    def input(self, name: str, param: Any) -> Any:
        """An input that several kernels read is copied first: each that reads a caller's tensor splits the graph."""
        if self._out_params or name not in self._reused:
            return param
        return self._dps(_copy(param), [param], _spec(param))

    def output(self, at: int, expr: Any) -> Any:
        """Copy what no kernel could write in place: results of TVM's operators, inputs that are outputs."""
        if not self._out_params or at in self._written:
            return expr
        return self._inplace(_copy(expr), [expr], at)

    def result(self, outputs: list[Any]) -> Any:
        """In place: a tuple made outside of the graph, since TVM's rewriter cannot return what is inside."""
        if not self._out_params:
            return super().result(outputs)
        types = relax.TupleType([output.ty for output in outputs])
        return relax.op.call_pure_packed("vm.builtin.make_tuple", *outputs, ty_args=types)

    def call_layer(self, call: KernelCall, node: Node) -> None:
        """Kernels see addresses only, so tokens of any rank are what they are."""
        args = [*(self.expr(name) for name in node.inputs), *call.constants]
        self.call_kernel(call.symbol, args, self.graph.values[node.outputs[0]])

    def call_kernel(self, symbol: str, args: list[Any], out: Value) -> None:
        launch: Launch = self.kernels[symbol]
        if self._out_params and out.name in self.graph.outputs:
            at = self.graph.outputs.index(out.name)
            self._written.add(at)
            self.exprs[out.name] = self._inplace(launch, args, at)
        else:
            self.exprs[out.name] = self._dps(launch, args, (out.layout.physical_shape(out.shape), out.stored))

    def _dps(self, launch: Launch, args: list[Any], out: TensorSpec) -> Any:
        """Call a kernel whose output Relax allocates."""
        host = self._host(launch, [*map(_spec, args), out])
        out_ty = relax.TensorType(list(out[0]), out[1])
        return self.builder.emit(relax.call_dps_packed(host.name_hint, args, out_ty=out_ty))

    def _inplace(self, launch: Launch, args: list[Any], at: int) -> Any:
        """Call a kernel that writes output number `at` where the caller wants it."""
        out = self._out_params[at]
        host = self._host(launch, [*map(_spec, args), _spec(out)])
        return self.builder.emit(relax.call_tir_inplace(host, [*args, out], [len(args)], out.ty))

    def _host(self, launch: Launch, tensors: list[TensorSpec]) -> Any:
        key = (launch, tuple(tensors))
        if key not in self._hosts:
            name = f"sparsetvm_launch_{len(self._hosts)}"
            self._hosts[key] = self.builder.add_func(self._cuda.host_function(name, launch, tensors), name)
        return self._hosts[key]


def emit_cuda_buckets(networks: Sequence[Network], buckets: Sequence[int], target: Target) -> Emitted:
    """Relax module with both functions for each bucket ("main_8", "main_static_8")."""
    library, last = Library(), None
    for network, size in zip(networks, buckets, strict=True):
        last = CudaEmission(network.graph, network.tasks, network.configs, target, library, like=last)
        last.functions(bucket_main(size), bucket_main(size, static=True))
    if last is None:
        raise SparseTvmError("a model without buckets has no networks")
    return last.finish()


def _spec(expr: Any) -> TensorSpec:
    """Shape and dtype of a Relax expression with a static shape."""
    return tuple(int(size) for size in expr.ty.shape), str(expr.ty.dtype)


def _copy(expr: Any) -> Launch:
    shape, dtype = _spec(expr)
    return copy_launch(math.prod(shape) * np.dtype(dtype).itemsize)
