"""Let a layer write its result over its residual where nothing reads the residual afterwards.

Before:  out = alloc_tensor(...); layer(x, residual, weights, out)      then everybody reads `out`
After:   layer(x, residual, weights, residual)                          then everybody reads `residual`

A residual was just read, or written, by the layers around it, so its lines are in the caches. A tensor of its own is
not: a network of tens of megabytes has pushed it out since the last inference, and each line must be fetched before a
part of it can be written. In ResNet-50's first stage (3.2 MB a tensor) that was half the time of such layers. LLVM must
not take Y and the residual of such a kernel for memory of their own (`Emission` clears "tirx.noalias").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax
from tvm.relax.backend.cpu_generic import pipeline

from sparsetvm.core.config import Config
from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.layout import Plain
from sparsetvm.core.task import Task
from sparsetvm.schedules.base import template

SUFFIX = "_in_place"  # of the symbols of kernels that are called so
_RESIDUAL = 1  # its place among a layer's arguments


def layers_in_place(graph: Graph, tasks: Mapping[str, Task], configs: Mapping[str, Config]) -> set[str]:
    """Names of the layers of a rewritten graph that can write over their residual."""
    consumers, producers = graph.consumers(), graph.producers()
    last_reader = {name: node.name for node in graph.nodes for name in node.inputs}
    found = set()
    for node in graph.nodes:
        if node.name not in tasks or len(node.inputs) != 2 or node.inputs[0] == node.inputs[1]:
            continue
        name, out = node.inputs[1], graph.values[node.outputs[0]]
        residual, readers = graph.values[name], consumers[name]
        of_its_own = name in producers and name not in graph.outputs
        same = residual.layout == out.layout and residual.dtype == out.dtype and not isinstance(out.layout, Plain)
        # An alias, or what TVM makes of a Reshape, would be a second name of the same memory.
        kernels = all(_is_kernel(other, tasks) for other in [*readers, *([producers[name]] if of_its_own else [])])
        if of_its_own and same and kernels and last_reader[name] == node.name:
            workload, config = tasks[node.name].workload, configs[node.name]
            if template(config.template).writes_in_place(workload, config):
                found.add(node.name)
    return found


def _is_kernel(node: Node, tasks: Mapping[str, Task]) -> bool:
    """True for nodes that are a call of a kernel of ours: they read whole tensors and write one of their own."""
    return node.name in tasks or node.is_op("convert", "depthwise_conv2d", domain=SPARSETVM_DOMAIN)


@tvm.transform.module_pass(opt_level=0, name="WriteInPlace")
class WriteInPlace:
    """The pass. Requires: calls in destination-passing style with their allocations, before memory is planned."""

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                module[variable] = _Rewriter(function).run()
        return module


def cpu_pipeline(target: tvm.target.Target) -> tvm.transform.Sequential:
    """TVM's default passes for a CPU, with this one before memory is planned. To be run in the target's scope."""
    before = pipeline.library_dispatch_passes(target) + pipeline.legalize_passes(target)
    lowered = [*before, *pipeline.dataflow_lower_passes(target), WriteInPlace()]
    return tvm.transform.Sequential([*lowered, *pipeline.finalize_passes(target)])


class _Rewriter:
    """Rewrites one function. Its bindings are flat, and the arguments of calls are variables, constants or tuples."""

    def __init__(self, function: relax.Function) -> None:
        self.function = function
        self.replaced: dict[Any, Any] = {}  # the allocations that are gone, and their other names -> the residual

    def run(self) -> relax.Function:
        for block in self.function.body.blocks:
            for binding in block.bindings:
                self._collect(binding)
        if not self.replaced:
            return self.function
        blocks = [
            relax.BindingBlock([new for binding in block.bindings if (new := self._binding(binding)) is not None])
            for block in self.function.body.blocks
        ]
        body = relax.SeqExpr(blocks, self._expr(self.function.body.body))
        f = self.function
        return relax.Function(f.params, body, f.ret_ty, f.is_pure, f.attrs, f.span)

    def _collect(self, binding: Any) -> None:
        value = binding.value
        if isinstance(value, relax.Var) and value in self.replaced:
            self.replaced[binding.var] = self.replaced[value]
        elif _in_place(value):
            self.replaced[value.args[-1]] = self._expr(value.args[_RESIDUAL])

    def _binding(self, binding: Any) -> Any:
        if binding.var in self.replaced:
            return None
        value = self._expr(binding.value)
        return binding if value is binding.value else relax.VarBinding(binding.var, value)

    def _expr(self, expr: Any) -> Any:
        """`expr` with other variables; itself when it has none of those that are gone."""
        if isinstance(expr, relax.Var):
            return self.replaced.get(expr, expr)
        parts = list(
            expr.args if isinstance(expr, relax.Call) else expr.fields if isinstance(expr, relax.Tuple) else ()
        )
        new = [self._expr(part) for part in parts]
        if all(one is other for one, other in zip(parts, new, strict=True)):
            return expr
        if isinstance(expr, relax.Call):
            return relax.Call(expr.op, new, expr.attrs, expr.ty_args, expr.span, expr.ty)
        return relax.Tuple(new)


def _in_place(expr: Any) -> bool:
    """True for a call of a kernel that writes over its residual."""
    if not isinstance(expr, relax.Call) or not isinstance(expr.op, relax.ExternFunc):
        return False
    return str(expr.op.global_symbol).endswith(SUFFIX)
