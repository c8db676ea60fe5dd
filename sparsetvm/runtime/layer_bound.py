"""One layer on ONNX Runtime, and how far two float32 computations of it can be apart.

A sum of n products in float32, added in any order, with or without fused multiply-add, is off by at most

    gamma(n) * sum |w| |x|,    gamma(n) = n u / (1 - n u),    u = 2^-24

(N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1). Zero weights add no error, so
n is the number of non-zeros of a row, and 2 for bias and residual. Ours and the reference are both off by that much.
An activation multiplies it by its largest slope and adds the error of its own evaluation. Factors rounded to TF32 or
float16 are off by a share of themselves, small ones in float16 by half of its smallest number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparsetvm.core.arithmetic import Arithmetic
from sparsetvm.core.graph import Node
from sparsetvm.measure.reference import activate

UNIT = 2.0**-24
# A factor rounded to TF32 or float16 is off by at most this share of itself (core/arithmetic.py), or by _HALF_TINY.
_HALF_UNIT, _BFLOAT_UNIT = 2.0**-11, 2.0**-8
_HALF_TINY = 2.0**-25
_EXTRA_TERMS = 2  # bias and residual
_SMALLEST_NORMAL = 2.0**-126
# Largest slopes: gelu's is at x = sqrt(2), silu's at x = 2.4, hard_swish's just below 3.
SLOPES = {
    "none": 1.0,
    "relu": 1.0,
    "clip": 1.0,
    "sigmoid": 0.25,
    "gelu": 1.13,
    "gelu_tanh": 1.13,
    "silu": 1.1,
    "hard_swish": 1.5,
}
# What the kernels' smooth activations promise, absolute and relative (schedules/x86/tir.py and schedules/cuda).
_SMOOTH_ERROR = 1e-6
_OPSET = 13

Session = Callable[[bytes], Any]


class LayerReference:
    """A layer (matmul, conv2d or depthwise_conv2d of the rewritten graph) as an ONNX model.

    open_session: makes an ONNX Runtime session of a serialised model. half: the result is stored in float16. terms: of
    the longest sum.
    """

    def __init__(self, layer: Node, arithmetic: Arithmetic, open_session: Session, half: bool = False) -> None:
        weight, bias = layer.attrs["weight"], layer.attrs["bias"]
        self._epilogue = layer.attrs["epilogue"]
        self._exact = open_session(_linear_model(layer, weight, bias))
        self._absolute = open_session(_linear_model(layer, np.abs(weight), None if bias is None else np.abs(bias)))
        terms = np.count_nonzero(weight, axis=1) + _EXTRA_TERMS
        self.terms = int(terms.max())
        self._half = half
        # What all terms of a sum can be off by for factors too small for float16, per unit of weight and activation.
        self._small = self.terms * _HALF_TINY if arithmetic == "float16" else 0.0
        self._largest = float(np.abs(weight).max(initial=0.0))
        unit = {"float32": 0.0, "bfloat16": _BFLOAT_UNIT}.get(arithmetic, _HALF_UNIT)
        factors = 2 * unit + unit**2
        gamma = terms * UNIT / (1 - terms * UNIT)
        # The absolute sum is itself computed in float32.
        share = (2 * gamma + factors) * (1 + gamma)
        self._share = share if layer.op == "matmul" else share[:, None, None]
        self._tiny = 2 * self.terms * _SMALLEST_NORMAL

    def __call__(self, x: np.ndarray, residual: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """The layer's output, and the largest distance from it of any correct result; both float64."""
        inputs = {"x": x} if residual is None else {"x": x, "residual": residual}
        exact = self._exact.run(None, inputs)[0].astype(np.float64)
        total = self._absolute.run(None, {name: np.abs(array) for name, array in inputs.items()})[0]
        result = activate(exact, self._epilogue)
        kind = self._epilogue.activation
        small = self._small * (self._largest + float(np.abs(x).max(initial=0.0)) + _HALF_TINY)
        limit = (self._share * total.astype(np.float64) + self._tiny + small) * SLOPES[kind]
        if kind not in ("none", "relu", "clip"):
            limit = limit + _SMOOTH_ERROR * np.maximum(1.0, np.abs(result))
        if self._half:  # rounds what is off by `limit` already
            limit = limit + np.maximum(_HALF_UNIT * (np.abs(result) + limit), _HALF_TINY)
        return result, np.asarray(limit + UNIT * np.abs(result))


def worst(ours: np.ndarray, reference: np.ndarray, limit: np.ndarray) -> tuple[float, float, float]:
    """(error / limit, error, limit) where the first is largest; infinity where only one side is finite."""
    wide = ours.astype(np.float64)
    same = (wide == reference) | (np.isnan(wide) & np.isnan(reference))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(same, 0.0, np.abs(wide - reference))
        ratio = np.where(same, 0.0, error / limit)
    error, ratio = (np.where(np.isnan(array), math.inf, array) for array in (error, ratio))
    at = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    return float(ratio[at]), float(error[at]), float(limit[at])


def _linear_model(layer: Node, weight: np.ndarray, bias: np.ndarray | None) -> bytes:
    """Product or convolution, bias and residual; the activation is left out."""
    conv = layer.attrs["conv"]
    inputs = ["x", "residual"] if len(layer.inputs) > 1 else ["x"]
    constants, nodes = {}, []
    if conv is None:
        constants["w"] = np.ascontiguousarray(weight.T)
        nodes.append(helper.make_node("MatMul", ["x", "w"], ["sum"]))
    else:
        constants["w"] = weight.reshape(weight.shape[0], conv.in_channels // conv.groups, *conv.kernel)
        attrs = {"strides": conv.stride, "pads": conv.pads, "dilations": conv.dilation, "group": conv.groups}
        nodes.append(helper.make_node("Conv", ["x", "w"], ["sum"], kernel_shape=list(conv.kernel), **attrs))
    last = "sum"
    if bias is not None:
        constants["b"] = bias if conv is None else bias.reshape(-1, 1, 1)
        nodes.append(helper.make_node("Add", [last, "b"], ["biased"]))
        last = "biased"
    if len(inputs) > 1:
        nodes.append(helper.make_node("Add", [last, "residual"], ["added"]))
        last = "added"
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    return bytes(model.SerializeToString())
