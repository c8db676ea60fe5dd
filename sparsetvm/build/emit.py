"""Graph -> Relax module: a kernel call for every node that has a kernel, TVM's ONNX importer for every other one.

Kernels are called by name (`call_dps_packed`): Relax plans their memory and leaves them alone. Nodes that the importer
translates stay Relax operators, which TVM legalises and fuses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from sparsetvm.build.remainder import remainder_kernel
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
    """The Relax module and the number of distinct kernels in it."""

    module: tvm.IRModule
    kernels: int


def emit(graph: Graph, tasks: Mapping[str, Task], configs: Mapping[str, Config], target: Target) -> Emitted:
    """Relax module with a function "main" from the graph's inputs to its outputs.

    `tasks` and `configs` give the task and the chosen config of every layer by name. Raises ModelError naming the layer
    when TVM cannot import an operator.
    """
    return _Emission(graph, tasks, configs, target).run()


class _Emission:
    def __init__(self, graph: Graph, tasks: Mapping[str, Task], configs: Mapping[str, Config], target: Target) -> None:
        self.graph, self.tasks, self.configs, self.target = graph, tasks, configs, target
        self.builder = relax.BlockBuilder()
        self.exprs: dict[str, Any] = {}
        self.kernels: dict[str, Any] = {}
        self.symbols: dict[object, str] = {}

    def run(self) -> Emitted:
        params = [
            relax.Var(f"input_{i}", relax.TensorType(list(value.shape), value.dtype))
            for i, value in enumerate(self.graph.values[name] for name in self.graph.inputs)
        ]
        self.exprs = dict(zip(self.graph.inputs, params, strict=True))
        with self.builder.function("main", params):
            with self.builder.dataflow():
                for node in self.graph.nodes:
                    self._node(node)
                results = [self._expr(name) for name in self.graph.outputs]
                out = self.builder.emit_output(results[0] if len(results) == 1 else relax.Tuple(results))
            self.builder.emit_func_output(out)
        module = self.builder.finalize()
        for symbol, func in self.kernels.items():
            module[tvm.ir.GlobalVar(symbol)] = func
        return Emitted(module, len(self.kernels))

    def _expr(self, name: str) -> Any:
        if name not in self.exprs:
            data = self.graph.constant(name)
            if data is None:
                raise SparseTvmError(f"value '{name}' is used before it is computed")
            self.exprs[name] = relax.const(np.ascontiguousarray(data))
        return self.exprs[name]

    def _node(self, node: Node) -> None:
        if node.is_op(*LAYER_OPS, domain=SPARSETVM_DOMAIN):
            self._layer(node)
            return
        if node.is_op("alias", domain=SPARSETVM_DOMAIN):
            self.exprs[node.outputs[0]] = self._expr(node.inputs[0])
            return
        kernel = remainder_kernel(self.graph, node, self.target)
        if kernel is None:
            self._import(node)
            return
        symbol = self.symbols.get(kernel.key)
        if symbol is None:
            symbol = f"sparsetvm_{node.op.lower()}_{len(self.symbols)}"
            self.symbols[kernel.key] = symbol
            self.kernels[symbol] = kernel.build(symbol)
        inputs = [self._expr(name) for name in kernel.inputs]
        self._call(symbol, [*inputs, *(relax.const(a) for a in kernel.constants)], self.graph.values[node.outputs[0]])

    def _layer(self, node: Node) -> None:
        task, config = self.tasks[node.name], self.configs[node.name]
        chosen = template(config.template)
        try:
            packed = chosen.pack(node.attrs["weight"], node.attrs["bias"], task.workload, config, self.target)
        except (ValueError, KeyError) as error:
            raise SparseTvmError(f"cannot pack weights for {config}: {error}", layer=node.name) from error
        # Layers of one task have their non-zeros in the same places, with values of their own: they share the kernel.
        key = (task.workload.id, str(config))
        symbol = self.symbols.get(key)
        if symbol is None:
            symbol = f"sparsetvm_layer_{len(self.symbols)}"
            self.symbols[key] = symbol
            self.kernels[symbol] = chosen.kernel(task.workload, config, packed, self.target, symbol)
        values = [self.graph.values[name] for name in [*node.inputs, *node.outputs]]
        # The kernels know a single token as (1, features), whatever its rank in the model.
        matrices = [isinstance(v.layout, Plain) and len(v.shape) != 2 for v in values]
        inputs = [
            self._reshape(self._expr(v.name), (1, math.prod(v.shape))) if matrix else self._expr(v.name)
            for v, matrix in zip(values[:-1], matrices, strict=False)
        ]
        args, out = [*inputs, *(relax.const(a) for a in packed.arrays)], values[-1]
        if matrices[-1]:
            call = self._kernel_call(symbol, args, (1, math.prod(out.shape)), out.dtype)
            self.exprs[out.name] = self._reshape(call, out.shape)
        else:
            self._call(symbol, args, out)

    def _reshape(self, expr: Any, shape: tuple[int, ...]) -> Any:
        return self.builder.emit(relax.op.reshape(expr, shape))

    def _kernel_call(self, symbol: str, args: list[Any], shape: tuple[int, ...], dtype: str) -> Any:
        return self.builder.emit(relax.call_dps_packed(symbol, args, out_ty=relax.TensorType(list(shape), dtype)))

    def _call(self, symbol: str, args: list[Any], out: Value) -> None:
        self.exprs[out.name] = self._kernel_call(symbol, args, out.layout.physical_shape(out.shape), out.dtype)

    def _import(self, node: Node) -> None:
        """Translate one ONNX operator; its inputs are plain, or share one layout that the operator does not see."""
        model = single_node_model(node, self.graph)
        importer = ONNXGraphImporter({}, "float32", sanitize=False)
        importer.bb = self.builder
        importer.opset = model.opset_import[0].version
        importer._parse_graph_initializers(model.graph)
        for value in model.graph.input:
            importer._nodes[value.name] = self._expr(value.name)
        try:
            importer._construct_nodes(model.graph)
        except Exception as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(
                f"TVM cannot import operator {node.op}: {first_line}",
                layer=node.name,
                hint="replace the operator before export, or report the model",
            ) from error
        for name in node.outputs:
            if name:
                self.exprs[name] = self.builder.normalize(importer._nodes[name])
