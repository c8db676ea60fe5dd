"""One layer as an ONNX model, for competitors that run models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparsetvm.core.task import Task
from sparsetvm.core.workload import ConvGeometry
from sparsetvm.measure.reference import input_shape, output_shape

OPSET, IR_VERSION = 13, 8


def write_layer_model(path: Path, task: Task) -> None:
    """Write the model x (, residual) -> y of a layer. Raises ValueError for an activation that has no rule here."""
    _LayerModel(task).write(path)


class _LayerModel:
    def __init__(self, task: Task) -> None:
        self._task, self._workload = task, task.workload
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def write(self, path: Path) -> None:
        workload, epilogue = self._workload, self._workload.epilogue
        value = self._matmul() if workload.conv is None else self._conv(workload.conv)
        inputs = [_info("x", input_shape(workload))]
        if epilogue.residual:
            value = self._node("Add", value, "residual")
            inputs.append(_info("residual", output_shape(workload)))
        self._activation(value)
        self._nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self._nodes, "layer", inputs, [_info("y", output_shape(workload))], self._constants
        )  # fmt: skip
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), path)

    def _matmul(self) -> str:
        # The constant on the right, as models have it: ONNX Runtime packs it in advance.
        value = self._node("MatMul", "x", self._constant("weight", self._task.weight.T))
        bias = self._task.bias
        return value if bias is None else self._node("Add", value, self._constant("bias", bias))

    def _conv(self, conv: ConvGeometry) -> str:
        kernel = self._task.weight.reshape(self._workload.m, conv.in_channels // conv.groups, *conv.kernel)
        bias = [] if self._task.bias is None else [self._constant("bias", self._task.bias)]
        return self._node(
            "Conv", "x", self._constant("weight", kernel), *bias, kernel_shape=conv.kernel, strides=conv.stride,
            pads=conv.pads, dilations=conv.dilation, group=conv.groups,
        )  # fmt: skip

    def _activation(self, value: str) -> None:
        epilogue = self._workload.epilogue
        if epilogue.activation == "clip":
            bounds = {"low": epilogue.low, "high": epilogue.high}
            self._node("Clip", value, *(self._constant(name, np.array(b, np.float32)) for name, b in bounds.items()))
        elif epilogue.activation == "relu":
            self._node("Relu", value)
        elif epilogue.activation != "none":
            raise ValueError(f"no model of one layer with {epilogue.activation}")

    def _constant(self, name: str, data: np.ndarray) -> str:
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(data), name))
        return name

    def _node(self, op: str, *inputs: str, **attributes: object) -> str:
        self._nodes.append(helper.make_node(op, list(inputs), [f"value{len(self._nodes)}"], **attributes))
        return str(self._nodes[-1].output[0])


def _info(name: str, dims: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))
