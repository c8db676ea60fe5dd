"""sparsetvm behind ONNX's own backend interface (`onnx.backend.base.Backend`), as `onnx.backend.test` drives it.

    from sparsetvm import onnx_backend
    outputs = onnx_backend.prepare(onnx.load("model.onnx")).run([x])

Shapes are static in what sparsetvm compiles, but an ONNX backend is prepared before it sees any input. So compiling
waits for the first `run`: open dimensions are those of the arrays given, and inputs that decide shapes or attributes
(`Reshape`'s shape, `Slice`'s starts, `TopK`'s k) become constants of the values given. Each set of those is compiled
once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import checker, helper, numpy_helper, version_converter
from onnx.backend.base import Backend, BackendRep, Device, DeviceType

from sparsetvm import api
from sparsetvm.errors import EnvironmentProblem, TargetError, UsageError
from sparsetvm.frontend.load import MIN_OPSET
from sparsetvm.runtime.module import Module

# Operator -> the inputs whose values decide shapes, or what the operator does: constants in every exported model.
STATIC_OPERANDS = {
    "AffineGrid": (1,),
    "CastLike": (1,),
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "CumSum": (1,),
    "Dropout": (1, 2),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    **dict.fromkeys(
        [f"Reduce{of}" for of in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")],
        (1,),
    ),
}


def bind_inputs(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of `model` in which the inputs named by `arrays` are initializers."""
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    kept = [info for info in bound.graph.input if info.name not in arrays]
    del bound.graph.input[:]
    bound.graph.input.extend(kept)
    bound.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return bound


def static_inputs(model: onnx.ModelProto) -> set[str]:
    """Names of the inputs that decide shapes, or what an operator does."""
    inputs = {info.name for info in model.graph.input}
    read = {
        node.input[at]
        for node in model.graph.node
        for at in STATIC_OPERANDS.get(node.op_type, ())
        if at < len(node.input)
    }
    return inputs & read


class SparseTvmRep(BackendRep):  # type: ignore[misc]
    """A model that is compiled at the first run, and again for other shapes."""

    def __init__(self, model: onnx.ModelProto, target: str, threads: int) -> None:
        self._model, self._target, self._threads = model, target, threads
        given = {tensor.name for tensor in model.graph.initializer}
        self._inputs = [info.name for info in model.graph.input if info.name not in given]
        self._static = static_inputs(model)
        self._modules: dict[object, Module] = {}

    def run(self, inputs: Any, **_: Any) -> tuple[Any, ...]:
        """Run on arrays in the order of the model's inputs, or by name; the outputs in the model's order."""
        arrays = self._by_name(inputs)
        # What has no elements is known when its shape is.
        bound = {name for name, array in arrays.items() if name in self._static or not array.size}
        static = {name: array for name, array in arrays.items() if name in bound}
        feed = {name: array for name, array in arrays.items() if name not in bound}
        key = (
            tuple((name, array.tobytes(), array.shape) for name, array in static.items()),
            tuple(array.shape for array in feed.values()),
        )
        if key not in self._modules:
            shapes = {name: array.shape for name, array in feed.items()}
            self._modules[key] = self._compiled(bind_inputs(self._model, static), shapes)
        outputs = self._modules[key].run(feed)
        return tuple(outputs[info.name] for info in self._model.graph.output)

    def _by_name(self, inputs: Any) -> dict[str, np.ndarray]:
        if isinstance(inputs, np.ndarray):
            inputs = [inputs]
        if not isinstance(inputs, Mapping):
            if len(inputs) != len(self._inputs):
                raise UsageError(
                    f"the model takes {len(self._inputs)} inputs, {len(inputs)} were given",
                    hint=f"in this order: {', '.join(self._inputs)}",
                )
            inputs = dict(zip(self._inputs, inputs, strict=True))
        return {name: np.asarray(array) for name, array in inputs.items()}

    def _compiled(self, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Module:
        with tempfile.TemporaryDirectory(prefix="sparsetvm-backend-") as folder:
            path, library = Path(folder) / "model.onnx", Path(folder) / "model.so"
            onnx.save(model, path)
            api.compile(path, library, target=self._target, threads=self._threads, shapes=shapes)
            return api.load(library)


class SparseTvmBackend(Backend):  # type: ignore[misc]
    """ONNX's backend interface. Errors are those of sparsetvm: `ModelError` for a model that it does not take."""

    rep = SparseTvmRep

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> SparseTvmRep:
        """A handle whose `run` takes arrays. device: "CPU", "CUDA" or "CUDA:1"; threads: 1 when not given."""
        checker.check_model(model)
        model = _new_enough(model)
        return cls.rep(model, _target(device), int(kwargs.get("threads", 1)))

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one node on arrays, one for each input that is not absent. Its opset is `opset_version`, or the newest.

        outputs_info: not needed, types and shapes of outputs are inferred.
        """
        opset = helper.make_opsetid("", int(kwargs.pop("opset_version", onnx.defs.onnx_opset_version())))
        names = [name for name in node.input if name]
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype), array.shape)
            for name, array in zip(names, inputs, strict=True)
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        model = helper.make_model(helper.make_graph([node], "node", infos, outputs), opset_imports=[opset])
        static = static_inputs(model)
        values = {name: np.asarray(array) for name, array in zip(names, inputs, strict=True) if name in static}
        inferred = onnx.shape_inference.infer_shapes(bind_inputs(model, values), strict_mode=True, data_prop=True)
        del model.graph.output[:]
        model.graph.output.extend(inferred.graph.output)
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """True for a CPU, and for a GPU that answers."""
        if Device(device).type == DeviceType.CPU:
            return True
        from sparsetvm.core.gpu import query_gpu

        try:
            query_gpu(Device(device).device_id)
        except (EnvironmentProblem, TargetError):
            return False
        return True


def _new_enough(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in an opset that sparsetvm reads."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions or versions[0] >= MIN_OPSET:
        return model
    return version_converter.convert_version(model, MIN_OPSET)


def _target(device: str) -> str:
    """sparsetvm's name of an ONNX device."""
    parsed = Device(device)
    return "cpu" if parsed.type == DeviceType.CPU else f"cuda:{parsed.device_id}"


prepare = SparseTvmBackend.prepare
run_model = SparseTvmBackend.run_model
run_node = SparseTvmBackend.run_node
supports_device = SparseTvmBackend.supports_device
is_compatible = SparseTvmBackend.is_compatible
