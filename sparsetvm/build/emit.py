"""Graph -> Relax module: a kernel call for every node that has a kernel, TVM's ONNX importer for every other one.

Kernels are called by name (`call_dps_packed`): Relax plans their memory and leaves them alone. Nodes that the importer
translates stay Relax operators, which TVM legalises and fuses.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from sparsetvm.build.extremes import emit_extreme, has_axes
from sparsetvm.build.guard_division import emit_division, may_trap
from sparsetvm.build.guard_indices import GATHERS, emit_gather, guard, needs_guard
from sparsetvm.build.new_operands import with_operands
from sparsetvm.build.remainder import RemainderKernel, gather_kernel, remainder_kernel
from sparsetvm.build.write_in_place import SUFFIX, layers_in_place
from sparsetvm.core.config import Config
from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node, Value
from sparsetvm.core.layout import Plain
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.errors import ModelError, SparseTvmError
from sparsetvm.frontend.to_onnx import single_node_model
from sparsetvm.rewrite.make_layers import LAYER_OPS
from sparsetvm.schedules.base import template


@dataclass
class Emitted:
    """The Relax module, the number of distinct kernels in it, and its kernel calls in order, for one chunk."""

    module: tvm.IRModule
    kernels: int
    order: list[dict[str, str]]
    weights: list[np.ndarray]


def emit(
    graph: Graph, tasks: Mapping[str, Task], configs: Mapping[str, Config], target: Target, separate: bool = False
) -> Emitted:
    """Relax module with a function "main" from the graph's inputs to its outputs.

    separate: the packed weights of layers are no constants but further arguments (`weights` of the result; CPU only).

    `tasks` and `configs` give the task and the chosen config of every layer by name. Raises ModelError naming the layer
    when TVM cannot import an operator.
    """
    if target.kind == "cuda":
        from sparsetvm.build.emit_cuda import CudaEmission

        return CudaEmission(graph, tasks, configs, target).run()
    return Emission(graph, tasks, configs, target, Library(separate)).run()


@dataclass
class KernelCall:
    """A kernel call without its activations: symbol, names of the activations, constants that follow them."""

    symbol: str
    inputs: list[str]
    constants: list[Any]


class Library:
    """What the functions of one module share: the Relax builder, kernels by what they compute, and constants.

    separate: packed weights become arguments of the function. weights, weight_variables: those arguments.
    """

    def __init__(self, separate: bool = False) -> None:
        self.builder = relax.BlockBuilder()
        self.kernels: dict[str, Any] = {}
        self.symbols: dict[object, str] = {}
        self.separate = separate
        self.weights: list[np.ndarray] = []
        self.weight_variables: list[Any] = []
        self.dropped: list[str] = []  # functions that were only a way to build others
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Any] = {}

    def constant(self, array: np.ndarray) -> Any:
        """The array as a Relax constant with its own dtype: without one given, TVM makes int32 of int64.

        Equal arrays become one constant, which the library then holds once.
        """
        plain = np.ascontiguousarray(array).reshape(array.shape)  # ascontiguousarray makes one dimension of a scalar
        key = (str(plain.dtype), plain.shape, hashlib.sha256(plain.data if plain.size else b"").digest())
        if key not in self._constants:
            self._constants[key] = relax.const(plain, str(plain.dtype))
        return self._constants[key]

    def module(self) -> tvm.IRModule:
        """The module with all kernels."""
        module = self.builder.finalize()
        for name in self.dropped:
            del module[name]
        for symbol, func in self.kernels.items():
            module[tvm.ir.GlobalVar(symbol)] = func
        return module


class Emission:
    """The emission of one graph as a function; several may share a library.

    `CudaEmission` changes how kernels are called and adds a function.
    """

    def __init__(
        self,
        graph: Graph,
        tasks: Mapping[str, Task],
        configs: Mapping[str, Config],
        target: Target,
        library: Library | None = None,
    ) -> None:
        self.graph, self.tasks, self.configs, self.target = graph, tasks, configs, target
        self.library = library or Library()
        self.builder = self.library.builder
        self.kernels, self.symbols = self.library.kernels, self.library.symbols
        self.exprs: dict[str, Any] = {}
        self.constants: dict[str, Any] = {}
        # Every chunk of the batch calls the same kernels with the same weights.
        self.calls: dict[str, KernelCall | None] = {}
        self.order: list[dict[str, str]] = []
        self.parts = graph.parts()
        self.slices = 0  # of the inputs, that have been taken
        self.in_place = layers_in_place(graph, tasks, configs) if target.kind == "cpu" else set()

    def run(self) -> Emitted:
        self.function("main", self.parameters())
        return Emitted(self.library.module(), len(self.kernels), self.order, self.library.weights)

    def parameters(self) -> list[Any]:
        """A variable for each input of the model."""
        return [self.variable(f"input_{at}", name) for at, name in enumerate(self.graph.inputs)]

    def variable(self, name: str, value: str) -> Any:
        """A variable of a model input or output as the caller sees it."""
        dtype = self.graph.values[value].dtype
        return relax.Var(name, relax.TensorType(list(self.graph.model_shape(value)), dtype))

    def function(self, name: str, params: list[Any], attrs: dict[str, Any] | None = None) -> None:
        """Add a Relax function; its first parameters are the model's inputs."""
        self.exprs, self.slices = {}, 0
        chunks: list[list[Any]] = [[] for _ in self.graph.outputs]
        with self.builder.function(name, params, attrs=attrs):
            with self.builder.dataflow():
                for _ in range(self.graph.slices):
                    self.order = []
                    self._part(len(self.parts) - 1, params, chunks)
                results = [part[0] if len(part) == 1 else self._concat(part) for part in chunks]
                out = self.builder.emit_output(self.result(results))
            params += self.library.weight_variables  # known now; the builder takes this list when the function ends
            self.builder.emit_func_output(out)

    def _part(self, at: int, params: list[Any], chunks: list[list[Any]]) -> None:
        """One run of part number `at` of the graph, after the runs of the parts before it that it gathers.

        chunks: of every output of the model what has been computed of it, appended to.
        """
        part = self.parts[at]
        gathers = [node for node in part if node.is_op("gather", domain=SPARSETVM_DOMAIN)]
        if at == 0:
            self._slice_inputs(params)
        else:
            pieces: list[list[Any]] = []
            for _ in range(self._gathered(part)):
                self._part(at - 1, params, chunks)
                pieces.append([self.expr(node.inputs[0]) for node in gathers])
            for node, of_value in zip(gathers, zip(*pieces, strict=True), strict=True):
                self._gather(node, list(of_value))
        for node in part[len(gathers) :]:
            self._node(node)
        here = {out for node in part for out in node.outputs} | {*(() if at else self.graph.inputs)}
        last = at == len(self.parts) - 1
        for index, name in enumerate(self.graph.outputs):
            if name in here or (last and self.graph.values[name].is_constant):
                chunks[index].append(self.output(index, self.expr(name)))

    def _gathered(self, part: list[Node]) -> int:
        """How many runs of the part before it one run of a part needs."""
        return int(part[0].attrs["count"]) if part and part[0].is_op("gather", domain=SPARSETVM_DOMAIN) else 1

    def _slice_inputs(self, params: list[Any]) -> None:
        """Take the next slice of every input of the model."""
        at, self.slices = self.slices, self.slices + 1
        for name, param in zip(self.graph.inputs, params, strict=False):
            self.exprs[name] = self.input(name, param)
            if self.graph.chunks > 1:
                size = self.graph.values[name].shape[0]
                self.exprs[name] = self.builder.emit(
                    relax.op.strided_slice(param, [0], [at * size], [(at + 1) * size], assume_inbound=True)
                )

    def _gather(self, node: Node, pieces: list[Any]) -> None:
        """One tensor of `pieces`: slices of a batch, which is outermost in memory."""
        symbol = self._symbol(node, gather_kernel(self.graph, node, self.target))
        self.order.append({"name": node.name, "op": node.op, "symbol": symbol})
        self.call_kernel(symbol, pieces, self.graph.values[node.outputs[0]])

    def input(self, name: str, param: Any) -> Any:
        """The expression of an input, given its parameter."""
        return param

    def output(self, at: int, expr: Any) -> Any:
        """What the function returns for output number `at`."""
        return expr

    def result(self, outputs: list[Any]) -> Any:
        """What the function returns: one tensor, or a tuple of several."""
        return outputs[0] if len(outputs) == 1 else relax.Tuple(outputs)

    def _concat(self, parts: list[Any]) -> Any:
        return self.builder.emit(relax.op.concat(parts, axis=0))

    def expr(self, name: str) -> Any:
        if name in self.exprs:
            return self.exprs[name]
        if name not in self.constants:
            data = self.graph.constant(name)
            if data is None:
                raise SparseTvmError(f"value '{name}' is used before it is computed")
            self.constants[name] = self.library.constant(data)
        return self.constants[name]

    def _node(self, node: Node) -> None:
        if node.is_op("alias", domain=SPARSETVM_DOMAIN):
            self.exprs[node.outputs[0]] = self.expr(node.inputs[0])
            return
        layer = node.is_op(*LAYER_OPS, domain=SPARSETVM_DOMAIN)
        if node.name not in self.calls:
            self.calls[node.name] = self._layer(node) if layer else self._remainder(node)
        call = self.calls[node.name]
        if call is None:
            self._import(node)
            return
        self.order.append({"name": node.name, "op": node.op, "symbol": call.symbol})
        if layer:
            self.call_layer(call, node)
        else:
            args = [*(self.expr(name) for name in call.inputs), *call.constants]
            self.call_kernel(call.symbol, args, self.graph.values[node.outputs[0]])

    def _remainder(self, node: Node) -> KernelCall | None:
        kernel = remainder_kernel(self.graph, node, self.target)
        if kernel is None:
            return None
        return KernelCall(self._symbol(node, kernel), kernel.inputs, list(map(self.library.constant, kernel.constants)))

    def _symbol(self, node: Node, kernel: RemainderKernel) -> str:
        """The symbol of a kernel, which is built when it is new."""
        symbol = self.symbols.get(kernel.key)
        if symbol is None:
            symbol = f"sparsetvm_{node.op.lower()}_{len(self.symbols)}"
            self.symbols[kernel.key] = symbol
            self.kernels[symbol] = kernel.build(symbol)
        return symbol

    def _layer(self, node: Node) -> KernelCall:
        task, config = self.tasks[node.name], self.configs[node.name]
        chosen = template(config.template)
        try:
            packed = chosen.pack(node.attrs["weight"], node.attrs["bias"], task.workload, config, self.target)
        except (ValueError, KeyError) as error:
            raise SparseTvmError(f"cannot pack weights for {config}: {error}", layer=node.name) from error
        # Layers of one task have their non-zeros in the same places, with values of their own: they share the kernel,
        # unless their weights are in its code.
        suffix = SUFFIX if node.name in self.in_place else ""
        key = (task.workload.id, str(config), packed.meta.get("code"), suffix)
        symbol = self.symbols.get(key)
        if symbol is None:
            symbol = f"sparsetvm_layer_{len(self.symbols)}{suffix}"
            self.symbols[key] = symbol
            kernel: Any = chosen.kernel(task.workload, config, packed, self.target, symbol)
            self.kernels[symbol] = kernel.with_attr("tirx.noalias", False) if suffix else kernel
        return KernelCall(symbol, node.inputs, list(map(self._weight, packed.arrays)))

    def _weight(self, array: np.ndarray) -> Any:
        """A packed array as a constant, or as a further argument of the function."""
        library = self.library
        if not library.separate:
            return library.constant(array)
        variable = relax.Var(f"weight_{len(library.weights)}", relax.TensorType(list(array.shape), str(array.dtype)))
        library.weights.append(array)
        library.weight_variables.append(variable)
        return variable

    def call_layer(self, call: KernelCall, node: Node) -> None:
        values = [self.graph.values[name] for name in [*node.inputs, *node.outputs]]
        """Call a layer's kernel."""
        # The kernels know tokens as (tokens, features), whatever their rank in the model.
        tokens = self.tasks[node.name].workload.n
        matrices = [isinstance(v.layout, Plain) and len(v.shape) != 2 for v in values]
        inputs = [
            self._reshape(self.expr(v.name), (tokens, math.prod(v.shape) // tokens)) if matrix else self.expr(v.name)
            for v, matrix in zip(values[:-1], matrices, strict=False)
        ]
        args, out = [*inputs, *call.constants], values[-1]
        if matrices[-1]:
            result = self._kernel_call(call.symbol, args, (tokens, math.prod(out.shape) // tokens), out.dtype)
            self.exprs[out.name] = self._reshape(result, out.shape)
        else:
            self.call_kernel(call.symbol, args, out)

    def _reshape(self, expr: Any, shape: tuple[int, ...]) -> Any:
        return self.builder.emit(relax.op.reshape(expr, shape))

    def _kernel_call(self, symbol: str, args: list[Any], shape: tuple[int, ...], dtype: str) -> Any:
        return self.builder.emit(relax.call_dps_packed(symbol, args, out_ty=relax.TensorType(list(shape), dtype)))

    def call_kernel(self, symbol: str, args: list[Any], out: Value) -> None:
        """Call the kernel that computes `out`."""
        self.exprs[out.name] = self._kernel_call(symbol, args, out.layout.physical_shape(out.shape), out.dtype)

    def _import(self, node: Node) -> None:
        """Translate one ONNX operator; its inputs are plain, or share one layout that the operator does not see."""
        if node.is_op("ReduceMax", "ReduceMin") and self.target.kind == "cpu" and has_axes(node, self.graph):
            expr = emit_extreme(self.builder, self.expr(node.inputs[0]), node, self.graph)
            self.exprs[node.outputs[0]] = expr
            return
        if needs_guard(node, self.graph):
            self._import_guarded(node)
            return
        if may_trap(node, self.graph):
            self._import_division(node)
            return
        results = self._imported(node, self.graph, {})
        self.exprs.update((name, self.builder.normalize(result)) for name, result in results.items())

    def _import_guarded(self, node: Node) -> None:
        """Translate an operator whose indices are computed, so that it stays within its table."""
        if node.is_op(*GATHERS):
            self.exprs[node.outputs[0]] = emit_gather(self.builder, node, self.graph, self.expr)
            return
        changed, finish = guard(self.builder, node, self.graph, self.expr)
        (result,) = self._imported(changed.node, changed.graph, changed.exprs).values()
        self.exprs[node.outputs[0]] = self.builder.emit(finish(result))

    def _import_division(self, node: Node) -> None:
        """Translate an integer division that might trap."""

        def divide(divisor: Any) -> Any:
            changed = with_operands(node, self.graph, {1: divisor})
            (result,) = self._imported(changed.node, changed.graph, changed.exprs).values()
            return result

        self.exprs[node.outputs[0]] = emit_division(self.builder, node, self.graph, self.expr, divide)

    def _imported(self, node: Node, graph: Graph, exprs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs of one node as TVM's importer translates it. exprs: of values that only `graph` has."""
        model = single_node_model(node, graph)
        importer = ONNXGraphImporter({}, "float32", sanitize=False)
        importer.bb = self.builder
        importer.opset = model.opset_import[0].version
        importer._parse_graph_initializers(model.graph)
        for value in model.graph.input:
            importer._nodes[value.name] = exprs[value.name] if value.name in exprs else self.expr(value.name)
        try:
            importer._construct_nodes(model.graph)
        except Exception as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(
                f"TVM cannot import operator {node.op}: {first_line}",
                layer=node.name,
                hint="replace the operator before export, or report the model",
            ) from error
        return {name: importer._nodes[name] for name in node.outputs if name}
