"""Operators that TVM's importer lacks, or computes wrongly, written in operators that it computes right.

Each was found by ONNX's own backend tests (docs/conformance.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from sparsetvm.core.graph import Value
from sparsetvm.errors import ModelError
from sparsetvm.frontend.expand_function import expanded
from sparsetvm.frontend.lower_einsum import einsum
from sparsetvm.frontend.lower_resize import resize, upsample
from sparsetvm.frontend.names import display_name
from sparsetvm.frontend.parts import Lowered
from sparsetvm.frontend.shapes import dtype_name

_CONV_ATTRS = ("strides", "dilations", "group", "kernel_shape")
_MAX_ELEMENTS = 16 << 20  # of a constant that is made here


def lower(
    node: onnx.NodeProto, inputs: Sequence[Value | None], attrs: Mapping[str, Any], opset: int, layer: str
) -> Lowered | None:
    """The nodes that stand for `node`; None when it is kept as it is.

    Raises ModelError for a form of an operator that would be computed wrongly.
    """
    rule = _RULES.get(node.op_type)
    if rule is None:
        return None
    parts = Lowered(node, list(inputs), dict(attrs), opset)
    try:
        return parts if rule(parts) else None
    except ModelError as error:
        error.layer = layer
        raise
    # Rules compute with attributes and constants of the file before anything has compared them.
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        what = f"not a valid {node.op_type}: {display_name(str(error), 200)}"
        hint = "check the model with onnx.checker.check_model(path, full_check=True)"
        raise ModelError(what, layer=layer, hint=hint) from error


def _function(parts: Lowered) -> bool:
    """By the definition that the ONNX standard gives."""
    parts.nodes = expanded(parts)
    return bool(parts.nodes)


def _layer_norm(parts: Lowered) -> bool:
    """TVM drops the mean and the deviation."""
    return any(parts.node.output[1:]) and _function(parts)


def _rms_norm(parts: Lowered) -> bool:
    """TVM's kernel knows the last axis only."""
    rank = len(parts.value(0).shape)
    return int(parts.attrs.get("axis", -1)) % rank != rank - 1 and _function(parts)


def _pow(parts: Lowered) -> bool:
    """The exponent may be of another type, but not for TVM."""
    base, exponent = parts.value(0), parts.value(1)
    if np.dtype(base.dtype).kind != "f":
        raise ModelError(f"Pow of {base.dtype} is not supported", hint="compute it in float32")
    if exponent.dtype == base.dtype:
        return False
    cast = parts.op("Cast", parts.node.input[1], to=helper.np_dtype_to_tensor_dtype(np.dtype(base.dtype)))
    parts.op("Pow", parts.x, cast, out=parts.y)
    return True


def _eye_like(parts: Lowered) -> bool:
    shape = parts.value(0).shape
    wanted = parts.attrs.get("dtype")
    dtype = parts.value(0).dtype if wanted is None else dtype_name(int(wanted), "EyeLike")
    if len(shape) != 2 or math.prod(shape) > _MAX_ELEMENTS:
        return False
    parts.op("Identity", parts.const(np.eye(*shape, k=int(parts.attrs.get("k", 0)), dtype=dtype)), out=parts.y)
    return True


def _range(parts: Lowered) -> bool:
    """Constant bounds, of types that ONNX's shape inference does not read as well."""
    start, limit, delta = (parts.data(at) for at in range(3))
    if start is None or limit is None or delta is None or not delta.any():
        return False
    count = max(math.ceil((float(limit.reshape(())) - float(start.reshape(()))) / float(delta.reshape(()))), 0)
    if count > _MAX_ELEMENTS:
        return False
    steps = start.reshape(()) + np.arange(count, dtype=start.dtype) * delta.reshape(())
    parts.op("Identity", parts.const(steps.astype(start.dtype)), out=parts.y)
    return True


def _is_inf(parts: Lowered) -> bool:
    """TVM ignores which sign is asked for."""
    signs = [bool(parts.attrs.get(name, 1)) for name in ("detect_positive", "detect_negative")]
    if all(signs):
        return False
    infinite = parts.op("IsInf", parts.x)
    side = parts.op("Greater" if signs[0] else "Less", parts.x, parts.const(0.0))
    both = parts.op("And", infinite, side, out=parts.y if any(signs) else "")
    if not any(signs):
        parts.op("Xor", both, both, out=parts.y)
    return True


def _space_to_depth(parts: Lowered) -> bool:
    """TVM knows the order DCR only."""
    if str(parts.attrs.get("mode", "DCR")) != "CRD":
        return False
    size = int(parts.attrs["blocksize"])
    batch, channels, height, width = parts.value(0).shape
    split = parts.op("Reshape", parts.x, parts.const([batch, channels, height // size, size, width // size, size]))
    moved = parts.op("Transpose", split, perm=[0, 1, 3, 5, 2, 4])
    shape = [batch, channels * size * size, height // size, width // size]
    parts.op("Reshape", moved, parts.const(shape), out=parts.y)
    return True


def _tile(parts: Lowered) -> bool:
    """Expand over a new axis before each that is repeated; TVM's tile goes wrong on several of them."""
    repeats, shape = parts.data(1), parts.value(0).shape
    if repeats is None or len(repeats) != len(shape):
        return False
    apart = [size for n in shape for size in (1, n)]
    wide = [size for pair in zip(repeats, shape, strict=True) for size in pair]
    whole = [int(times) * n for times, n in zip(repeats, shape, strict=True)]
    spread = parts.op("Expand", parts.op("Reshape", parts.x, parts.const(apart)), parts.const(np.array(wide, np.int64)))
    parts.op("Reshape", spread, parts.const(whole), out=parts.y)
    return True


def _conv_transpose(parts: Lowered) -> bool:
    """`output_shape` in place of pads, which TVM ignores."""
    wanted = parts.attrs.get("output_shape")
    if not wanted:
        return False
    sizes, kernel = parts.value(0).shape[2:], parts.value(1).shape[2:]
    rank = len(sizes)
    strides = parts.attrs.get("strides") or [1] * rank
    dilations = parts.attrs.get("dilations") or [1] * rank
    extra = parts.attrs.get("output_padding") or [0] * rank
    begins, ends, missing = [], [], []
    for i in range(rank):
        full = strides[i] * (sizes[i] - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1
        total = max(full - int(wanted[i]), 0)
        missing.append(max(int(wanted[i]) - full, 0) + extra[i])
        more, less = total - total // 2, total // 2
        upper = str(parts.attrs.get("auto_pad", "NOTSET")) == "SAME_UPPER"
        begins.append(less if upper else more)
        ends.append(more if upper else less)
    attrs: dict[str, Any] = {"pads": begins + ends, "output_padding": missing}
    attrs.update({key: parts.attrs[key] for key in _CONV_ATTRS if key in parts.attrs})
    parts.op("ConvTranspose", *parts.node.input, out=parts.y, **attrs)
    return True


def _lp_normalization(parts: Lowered) -> bool:
    axis, p = int(parts.attrs.get("axis", -1)), int(parts.attrs.get("p", 2))
    norm = parts.reduce("ReduceL1" if p == 1 else "ReduceL2", parts.x, [axis % len(parts.value(0).shape)])
    # A vector of zeros has norm 0 and stays as it is.
    empty = parts.op("Equal", norm, parts.const(0.0))
    parts.op("Div", parts.x, parts.op("Where", empty, parts.const(1.0), norm), out=parts.y)
    return True


def _mean_variance(parts: Lowered) -> bool:
    axes = [int(axis) for axis in parts.attrs.get("axes", [0, 2, 3])]
    centred = parts.op("Sub", parts.x, parts.reduce("ReduceMean", parts.x, axes))
    variance = parts.reduce("ReduceMean", parts.op("Mul", centred, centred), axes)
    deviation = parts.op("Add", parts.op("Sqrt", variance), parts.const(1e-9))
    parts.op("Div", centred, deviation, out=parts.y)
    return True


def _softplus(parts: Lowered, out: str = "") -> bool:
    """max(x, 0) + log(1 + e) with e = exp(-|x|); TVM's log(1 + exp(x)) loses all digits of a small result.

    log(1 + e) = log(u) e / (u - 1) with u = 1 + e as it is rounded (N. J. Higham, Accuracy and Stability, problem 1.5).
    """
    one = parts.const(1.0)
    e = parts.op("Exp", parts.op("Neg", parts.op("Abs", parts.x)))
    u = parts.op("Add", one, e)
    d = parts.op("Sub", u, one)
    tiny = parts.op("Equal", d, parts.const(0.0))
    quotient = parts.op("Div", parts.op("Mul", parts.op("Log", u), e), parts.op("Where", tiny, one, d))
    parts.op("Add", parts.op("Relu", parts.x), parts.op("Where", tiny, e, quotient), out=out or parts.y)
    return True


def _mish(parts: Lowered) -> bool:
    soft = f"{parts.y}.softplus"
    _softplus(parts, soft)
    parts.op("Mul", parts.x, parts.op("Tanh", soft), out=parts.y)
    return True


def _dropout(parts: Lowered) -> bool:
    """Nothing is dropped at inference, so its mask is constant."""
    training = parts.data(2)
    if len(parts.inputs) > 2 and parts.inputs[2] is not None and (training is None or bool(training.any())):
        raise ModelError("Dropout in training mode", hint="export the model for inference: model.eval()")
    mask = parts.node.output[1] if len(parts.node.output) > 1 else ""
    if not mask:
        return False
    parts.op("Identity", parts.const(np.ones(parts.value(0).shape, bool)), out=mask)
    parts.op("Identity", parts.x, out=parts.y)
    return True


def _batch_norm(parts: Lowered) -> bool:
    if parts.attrs.get("training_mode", 0):
        raise ModelError("BatchNormalization in training mode", hint="export the model for inference: model.eval()")
    return False


def _one_hot(parts: Lowered) -> bool:
    """TVM takes constant values and integers only, and gives them another type."""
    depth, indices = parts.data(1), parts.value(0)
    if depth is None:
        return False
    size, rank = int(depth.reshape(-1)[0]), len(indices.shape) + 1
    axis = int(parts.attrs.get("axis", -1)) % rank
    at = parts.op("Cast", parts.x, to=onnx.TensorProto.INT64)
    shape = [*indices.shape[:axis], 1, *indices.shape[axis:]]
    at = parts.op("Reshape", at, parts.const(shape)) if indices.shape else parts.op("Reshape", at, parts.const([1]))
    negative = parts.op("Less", at, parts.const(np.array(0, np.int64)))
    at = parts.op("Where", negative, parts.op("Add", at, parts.const(np.array(size, np.int64))), at)
    steps = np.arange(size, dtype=np.int64).reshape([size if d == axis else 1 for d in range(rank)])
    hot = parts.op("Equal", at, parts.const(steps))
    off, on = (parts.op("Gather", parts.node.input[2], parts.const(np.array(i, np.int64))) for i in (0, 1))
    parts.op("Where", hot, on, off, out=parts.y)
    return True


def _top_k(parts: Lowered) -> bool:
    if np.dtype(parts.value(0).dtype).kind == "u":
        raise ModelError(f"TopK of {parts.value(0).dtype} is not supported", hint="cast its input to a signed type")
    return False


def _prelu(parts: Lowered) -> bool:
    """TVM takes slopes along one axis only. Models older than opset 7 have one slope per channel."""
    shape, slope = parts.value(0).shape, parts.node.input[1]
    sizes = parts.value(1).shape
    if len(shape) > 2 and len(sizes) == 1 and sizes[0] not in (1, shape[-1]) and sizes[0] == shape[1]:
        slope = parts.op("Reshape", slope, parts.const([sizes[0], *[1] * (len(shape) - 2)]))
    negative = parts.op("Less", parts.x, parts.const(0.0))
    parts.op("Where", negative, parts.op("Mul", parts.x, slope), parts.x, out=parts.y)
    return True


def _roi_align(parts: Lowered) -> bool:
    if str(parts.attrs.get("mode", "avg")) == "max":
        raise ModelError("RoiAlign with mode max is not supported", hint="export the model with mode avg")
    return False


def _split(parts: Lowered) -> bool:
    """Parts of size zero are constants."""
    sizes = parts.data(1) if len(parts.inputs) > 1 else parts.attrs.get("split")
    if sizes is None or all(int(size) for size in sizes) or parts.opset < 10:
        return False
    shape, axis = list(parts.value(0).shape), int(parts.attrs.get("axis", 0)) % len(parts.value(0).shape)
    start = 0
    for out, size in zip(parts.node.output, sizes, strict=True):
        stop = start + int(size)
        if size:
            bounds = [parts.const([bound]) for bound in (start, stop, axis)]
            parts.op("Slice", parts.x, *bounds, out=out)
        else:
            empty = np.zeros([*shape[:axis], 0, *shape[axis + 1 :]], parts.value(0).dtype)
            parts.op("Identity", parts.const(empty), out=out)
        start = stop
    return True


def _slice(parts: Lowered) -> bool:
    """TVM reads bounds from inputs only, with the axes that they are of. Before opset 10 they are attributes."""
    if parts.opset < 10:
        starts, ends = parts.attrs["starts"], parts.attrs["ends"]
        last, axes = parts.x, parts.attrs.get("axes") or range(len(starts))
        for number, (axis, start, end) in enumerate(zip(axes, starts, ends, strict=True), 1):
            kept = np.arange(parts.value(0).shape[axis], dtype=np.int64)[int(start) : int(end)]
            out = parts.y if number == len(starts) else ""
            last = parts.op("Gather", last, parts.const(kept), out=out, axis=int(axis))
        return True
    if len(parts.inputs) > 3 and parts.inputs[3] is not None:
        return False
    axes = parts.const(list(range(parts.value(1).shape[0])))
    parts.op("Slice", *parts.node.input[:3], axes, *parts.node.input[4:], out=parts.y)
    return True


def _concat(parts: Lowered) -> bool:
    """What is empty adds nothing."""
    kept = [name for name, value in zip(parts.node.input, parts.inputs, strict=True) if value and 0 not in value.shape]
    if len(kept) == len(parts.node.input) or not kept:
        return False
    parts.op("Concat", *kept, out=parts.y, axis=int(parts.attrs["axis"]))
    return True


_RULES: dict[str, Callable[[Lowered], bool]] = {
    "Attention": _function,
    "BatchNormalization": _batch_norm,
    "Celu": _function,
    "Concat": _concat,
    "ConvTranspose": _conv_transpose,
    "Dropout": _dropout,
    "Einsum": einsum,
    "EyeLike": _eye_like,
    "GroupNormalization": _function,
    "IsInf": _is_inf,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_normalization,
    "MeanVarianceNormalization": _mean_variance,
    "Mish": _mish,
    "OneHot": _one_hot,
    "PRelu": _prelu,
    "Pow": _pow,
    "RMSNormalization": _rms_norm,
    "Range": _range,
    "Resize": resize,
    "RoiAlign": _roi_align,
    "RotaryEmbedding": _function,
    "Slice": _slice,
    "Softplus": _softplus,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "SwiGLU": _function,
    "Swish": _function,
    "Tile": _tile,
    "TopK": _top_k,
    "Upsample": upsample,
}
