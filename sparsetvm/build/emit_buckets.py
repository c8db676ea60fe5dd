"""Graphs for several sizes -> a Relax module whose function "main" takes any size.

Each bucket is a static function, "main_8", that programs may also call themselves. Around them stands the dispatcher,
in Relax, so that TVM's runtime alone runs it:

    main(x)                     size = bucket:  main_8(x)
      samples are independent   plan = how often each bucket runs; for each bucket run_8(x, y, [first, count])
      tokens mix                the bucket that the table says: put(main_8(take(x, 0), masks(size)))
    run_8(x, y, [at, count])    count 0: y; 1: put(main_8(take(x, at)), y, at); else two halves of the count

The halves keep recursion shallow for any size. Results are written in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, tirx

from sparsetvm.build.emit import Emission, Emitted, Library
from sparsetvm.build.emit_cuda import emit_cuda_buckets
from sparsetvm.build.network import Network, Opened
from sparsetvm.core.buckets import MaskInput, counts_table, smallest_cost, steady_bucket
from sparsetvm.core.graph import Graph
from sparsetvm.core.manifest import bucket_main
from sparsetvm.core.target import Target
from sparsetvm.schedules.x86 import slices


@dataclass(frozen=True)
class _Tensor:
    """An input or output of the model: its shape in one bucket, and the axis of the dimension, None without it."""

    shape: tuple[int, ...]
    dtype: str
    axis: int | None

    def type(self, size: Any) -> Any:
        """Its Relax type for a size of the dimension."""
        dims = [size if at == self.axis else dim for at, dim in enumerate(self.shape)]
        return relax.TensorType(dims, self.dtype)


def emit_buckets(networks: Sequence[Network], opened: Opened, target: Target) -> Emitted:
    """Relax module with a function for each bucket, and on a CPU the "main" that takes any size.

    networks: in the order of the buckets. On a GPU sparsetvm's runtime puts runs together, for CUDA graphs are static.
    """
    if target.kind == "cuda":
        return emit_cuda_buckets(networks, opened.dynamic.buckets, target)
    return _Dispatcher(networks, opened, target).run()


class _Dispatcher:
    def __init__(self, networks: Sequence[Network], opened: Opened, target: Target) -> None:
        self.members, self.dynamic, self.target = networks, opened.dynamic, target
        axes = opened.axes
        self.library = Library()
        self.builder = self.library.builder
        self.mains: list[Any] = []
        self.shared: dict[object, Any] = {}
        graphs = [network.graph for network in networks]
        self.inputs = [
            [_tensor(graph, name, axes.get(name)) for name in graph.inputs if name not in graph.padding]
            for graph in graphs
        ]
        self.outputs = [
            [
                _tensor(graph, name, axes.get(public))
                for name, public in zip(graph.outputs, graph.output_names, strict=True)
            ]
            for graph in graphs
        ]

    def run(self) -> Emitted:
        order: list[dict[str, str]] = []
        for size, member in zip(self.dynamic.buckets, self.members, strict=True):
            emission = Emission(member.graph, member.tasks, member.configs, self.target, self.library)
            name = bucket_main(size)
            emission.function(name, emission.parameters())
            self.mains.append(self.builder.get().get_global_var(name))
            order = emission.order
        runs = [self._run(at) for at in range(len(self.members))] if self.dynamic.splits else []
        self._main(runs)
        return Emitted(self.library.module(), len(self.library.kernels), order, [])

    # --- small kernels ------------------------------------------------------------------------------------------------

    def _kernel(self, key: tuple[object, ...], build: Callable[[str], Any]) -> Any:
        """The PrimFunc for a key, added to the module at its first use."""
        if key not in self.shared:
            symbol = f"sparsetvm_{key[0]}_{len(self.shared)}"
            self.shared[key] = self.builder.add_func(build(symbol), symbol)
        return self.shared[key]

    def _call(self, kernel: Any, args: list[Any], out: Any) -> Any:
        return self.builder.emit(relax.call_tir(kernel, args, out_ty=out))

    def _take(self, tensor: _Tensor, whole: Any, at: Any) -> Any:
        """The slice of an input from position `at` on; an input without the dimension is the same for all."""
        if tensor.axis is None:
            return whole
        spec = (tensor.shape, tensor.axis, tensor.dtype)
        kernel = self._kernel(("take", *spec), lambda symbol: slices.take_kernel(*spec, self.target.threads, symbol))
        return self._call(kernel, [whole, at], tensor.type(tensor.shape[tensor.axis]))

    def _put(self, tensor: _Tensor, part: Any, whole: Any, at: Any, size: Any) -> Any:
        """`whole` with the part written to position `at` and on."""
        if tensor.axis is None:
            return part
        spec = (tensor.shape, tensor.axis, tensor.dtype)
        kernel = self._kernel(("put", *spec), lambda symbol: slices.put_kernel(*spec, self.target.threads, symbol))
        return self.builder.emit(relax.op.call_tir_inplace(kernel, [part, at, whole], [2], tensor.type(size)))

    def _new(self, number: int, tensor: _Tensor, size: Any) -> Any:
        """Memory for output `number`. A kernel of its own: equal calls would be taken for one."""
        axis = tensor.axis if tensor.axis is not None else 0
        key = ("new", number, tensor.shape)
        kernel = self._kernel(key, lambda symbol: slices.new_kernel(tensor.shape, axis, tensor.dtype, symbol))
        return self._call(kernel, [], tensor.type(size))

    def _is(self, number: Any, *values: int) -> Any:
        key = ("is", *values)
        kernel = self._kernel(key, lambda symbol: slices.is_kernel(values, symbol))
        return self._call(kernel, [number], relax.TensorType([], "bool"))

    def _masks(self, at: int, size: Any) -> list[Any]:
        """The inputs of a bucket's graph that tell of padded positions."""
        graph = self.members[at].graph
        return [self._mask(mask, graph.values[name].shape, size) for name, mask in graph.padding.items()]

    def _mask(self, mask: MaskInput, shape: tuple[int, ...], size: Any) -> Any:
        def build(symbol: str) -> Any:
            if mask.kind == "share":
                return slices.share_kernel(symbol)
            real, padded = (0.0, float("-inf")) if mask.kind == "lowest" else (1.0, 0.0)
            return slices.fill_kernel(shape, real, padded, symbol)

        kernel = self._kernel(("mask", mask.kind, shape), build)
        return self._call(kernel, [size], relax.TensorType(list(shape), "float32"))

    # --- functions ----------------------------------------------------------------------------------------------------

    def _parameters(self, size: Any) -> tuple[list[Any], list[Any]]:
        """Variables for the inputs and for the outputs of a run of `size` positions."""
        xs = [relax.Var(f"input_{at}", tensor.type(size)) for at, tensor in enumerate(self.inputs[0])]
        ys = [relax.Var(f"output_{at}", tensor.type(size)) for at, tensor in enumerate(self.outputs[0])]
        return xs, ys

    def _unpack(self, result: Any) -> list[Any]:
        """The outputs of a call, each as an expression."""
        if len(self.outputs[0]) == 1:
            return [result]
        return [self.builder.emit(relax.TupleGetItem(result, at)) for at in range(len(self.outputs[0]))]

    def _pack(self, ys: list[Any]) -> Any:
        return ys[0] if len(ys) == 1 else self.builder.emit(relax.Tuple(ys))

    def _branch(self, condition: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
        """`yes()` or `no()`, whose bindings run in one case only."""
        return self.builder.emit(relax.If(condition, self._scope(yes), self._scope(no)))

    def _scope(self, body: Callable[[], Any]) -> Any:
        self.builder._begin_binding_block()
        result = body()
        return relax.SeqExpr([self.builder._end_block()], result)

    def _bucket(self, at: int, xs: list[Any], ys: list[Any], first: Any, size: Any) -> list[Any]:
        """One piece: slices in, the bucket's function, results in place."""
        parts = [self._take(tensor, x, first) for tensor, x in zip(self.inputs[at], xs, strict=True)]
        result = self._unpack(self.builder.emit(relax.Call(self.mains[at], [*parts, *self._masks(at, size)])))
        return [
            self._put(tensor, part, y, first, size)
            for tensor, part, y in zip(self.outputs[at], result, ys, strict=True)
        ]

    def _run(self, at: int) -> Any:
        """The function that runs a bucket `count` times from position `first` on."""
        size, first, count = (tirx.Var(name, "int64") for name in ("size", "first", "count"))
        bucket = self.dynamic.buckets[at]
        name = f"run_{bucket}"
        xs, ys = self._parameters(size)
        where = relax.Var("where", relax.ShapeType([first, count]))
        # A function can call itself once the module knows its type: the first one has the type, the second the body.
        with self.builder.function(name, [*xs, *ys, where]):
            self.builder.emit_func_output(self._pack(list(ys)))
        me = self.builder.get().get_global_var(name)
        xs, ys = self._parameters(size)
        where = relax.Var("where", relax.ShapeType([first, count]))

        def halves() -> Any:
            half = count // 2
            done = self._unpack(self.builder.emit(relax.Call(me, [*xs, *ys, relax.ShapeExpr([first, half])])))
            rest = relax.ShapeExpr([first + half * bucket, count - half])
            return self.builder.emit(relax.Call(me, [*xs, *done, rest]))

        def some() -> Any:
            once = self._is(count, 1)
            return self._branch(once, lambda: self._pack(self._bucket(at, xs, ys, first, size)), halves)

        body = f"{name}_body"
        with self.builder.function(body, [*xs, *ys, where]):
            result = self._branch(self._is(count, 0), lambda: self._pack(list(ys)), some)
            self.builder.emit_func_output(result)
        made = self.builder.get()[body]
        self.builder.update_func(me, made.with_attr("global_symbol", name))
        self.library.dropped.append(body)
        return me

    def _main(self, runs: Sequence[Any]) -> None:
        size = tirx.Var("size", "int64")
        xs, _ = self._parameters(size)

        def exact(at: int) -> Any:
            """The size is a bucket: nothing is copied."""
            static = [
                self.builder.match_cast(x, tensor.type(self.dynamic.buckets[at]))
                for tensor, x in zip(self.inputs[at], xs, strict=True)
            ]
            call = self.builder.emit(relax.Call(self.mains[at], [*static, *self._masks(at, size)]))
            results = self._unpack(call)
            return self._pack(
                [
                    self.builder.match_cast(result, tensor.type(size))
                    for tensor, result in zip(self.outputs[at], results, strict=True)
                ]
            )

        def any_exact(numbers: Sequence[int]) -> Any:
            if len(numbers) == 1:
                return exact(numbers[0])
            return self._branch(
                self._is(size, self.dynamic.buckets[numbers[0]]),
                lambda: exact(numbers[0]),
                lambda: any_exact(numbers[1:]),
            )

        other = (lambda: self._slices(xs, runs, size)) if runs else (lambda: self._padded(xs, size))
        with self.builder.function("main", xs):
            numbers = range(len(self.members))
            is_bucket = self._is(size, *self.dynamic.buckets)
            self.builder.emit_func_output(self._branch(is_bucket, lambda: any_exact(numbers), other))

    def _slices(self, xs: list[Any], runs: Sequence[Any], size: Any) -> Any:
        """Run the buckets as often as the plan says."""
        table, steady = counts_table(self.dynamic), steady_bucket(self.dynamic)
        kinds = len(runs)
        kernel = self._kernel(
            ("plan",), lambda symbol: slices.plan_kernel(len(table), self.dynamic.buckets, steady, symbol)
        )
        plan = self._call(kernel, [self.library.constant(table), size], relax.TensorType([2 * kinds], "int64"))
        shape = self.builder.emit(relax.op.tensor_to_shape(plan))
        numbers = [tirx.Var(f"plan_{at}", "int64") for at in range(2 * kinds)]
        self.builder.match_cast(shape, relax.ShapeType(numbers))
        ys = [self._new(at, tensor, size) for at, tensor in enumerate(self.outputs[0])]
        for number, run in enumerate(reversed(runs)):
            where = relax.ShapeExpr(numbers[2 * number : 2 * number + 2])
            ys = self._unpack(self.builder.emit(relax.Call(run, [*xs, *ys, where])))
        return self._pack(ys)

    def _padded(self, xs: list[Any], size: Any) -> Any:
        """Run the one bucket that the table says."""
        table = np.array(smallest_cost(self.dynamic), np.int32)
        used = sorted(set(table.tolist()))

        def one(at: int) -> Any:
            ys = [self._new(number, tensor, size) for number, tensor in enumerate(self.outputs[0])]
            return self._pack(self._bucket(at, xs, ys, tirx.const(0, "int64"), size))

        def choose(numbers: Sequence[int]) -> Any:
            kernel = self._kernel(
                ("choose", numbers[0]), lambda symbol: slices.chooses_kernel(len(table), numbers[0], symbol)
            )
            chosen = self._call(kernel, [self.library.constant(table), size], relax.TensorType([], "bool"))
            if len(numbers) == 1:  # asked for its check of the size
                return self._branch(chosen, lambda: one(numbers[0]), lambda: one(numbers[0]))
            return self._branch(chosen, lambda: one(numbers[0]), lambda: choose(numbers[1:]))

        return choose(used)


def _tensor(graph: Graph, name: str, axis: int | None) -> _Tensor:
    return _Tensor(graph.model_shape(name), graph.values[name].dtype, axis)
