"""Fix the shapes of the model's inputs: from the file, from --shape, and 1 for a symbolic batch dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from sparsetvm.core.graph import Value
from sparsetvm.errors import ModelError, UsageError, did_you_mean
from sparsetvm.frontend.names import display_name, display_names, display_shape

_Dim = int | str


@dataclass
class FixedInputs:
    """`values`: the inputs in order; `symbolic`: input name -> {dimension: size} that was not fixed by the file."""

    values: list[Value]
    symbolic: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def dtype_name(elem_type: int, what: str) -> str:
    """numpy name of an ONNX element type. Raises ModelError naming `what` for types without one."""
    try:
        name = str(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{what} has the unknown data type {elem_type}") from error
    if name == "object":
        raise ModelError(f"{what} holds strings", hint="cut text processing off the model")
    return name


def fix_inputs(
    inputs: Sequence[onnx.ValueInfoProto],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> FixedInputs:
    """Static shape of every input.

    A size given for a named dimension holds for all inputs that share the name; `sizes` gives some by name ("": all
    that have none), which go before `shapes`. Raises UsageError for a --shape that fits no input, ModelError for a
    dimension that nothing fixes.
    """
    shapes = dict(shapes or {})
    names = [info.name for info in inputs]
    for name in shapes:
        if name not in names:
            raise UsageError(
                f"--shape {display_name(name)}: the model has no such input{did_you_mean(name, names)}",
                hint=f"its inputs are {display_names(names)}" if names else None,
            )
    dims = {info.name: _declared_dims(info, shapes.get(info.name)) for info in inputs}
    bound: dict[str, int] = dict(sizes or {})
    for name, given in shapes.items():
        _check_given(name, given, dims[name])
        shapes[name] = shape = tuple(
            bound[dim] if isinstance(dim, str) and dim in (sizes or {}) else size
            for dim, size in zip(dims[name], given, strict=True)
        )
        for dim, size in zip(dims[name], shape, strict=True):
            if isinstance(dim, str) and dim and bound.setdefault(dim, size) != size:
                raise UsageError(f"--shape {display_name(name)}: dimension '{display_name(dim)}' has two sizes")
    result = FixedInputs([])
    for info in inputs:
        result.values.append(_fix_one(info, dims[info.name], shapes.get(info.name), bound, result))
    return result


def symbolic_dims(
    inputs: Sequence[onnx.ValueInfoProto], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, dict[str, list[int]]]:
    """Dimension -> {input: axes that have it}, of all that the file leaves open; "" is one without a name."""
    found: dict[str, dict[str, list[int]]] = {}
    for info in inputs:
        for axis, dim in enumerate(_declared_dims(info, (shapes or {}).get(info.name))):
            if isinstance(dim, str):
                found.setdefault(dim, {}).setdefault(info.name, []).append(axis)
    return found


def _declared_dims(info: onnx.ValueInfoProto, given: tuple[int, ...] | None) -> list[_Dim]:
    """Sizes as the file declares them; a string (the name, or "") where the dimension is symbolic."""
    shown = display_name(info.name)
    if not info.type.HasField("tensor_type"):
        raise ModelError(f"input '{shown}' is no tensor", hint="sequences, maps and optionals are not supported")
    if not info.type.tensor_type.HasField("shape"):
        if given is None:
            raise ModelError(f"input '{shown}' has no shape", hint=f"write --shape {shown}=1x3x224x224 with its sizes")
        return ["" for _ in given]
    dims: list[_Dim] = []
    for dim in info.type.tensor_type.shape.dim:
        # Old exporters write -1 for "any size".
        dims.append(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param)
    return dims


def _check_given(name: str, shape: tuple[int, ...], dims: list[_Dim]) -> None:
    shown = display_name(name)
    declared = "x".join(str(d) if isinstance(d, int) else display_name(d) or "?" for d in dims) or "scalar"
    fits = len(shape) == len(dims) and all(
        d in (size, "") or isinstance(d, str) for d, size in zip(dims, shape, strict=True)
    )
    if not fits:
        raise UsageError(
            f"--shape {shown}={display_shape(shape)} does not fit the model's {declared}",
            hint="sizes that the model fixes cannot be changed; give only the symbolic ones another size",
        )
    if any(size <= 0 for size in shape):
        raise UsageError(f"--shape {shown}={display_shape(shape)}: sizes must be positive")


def _fix_one(
    info: onnx.ValueInfoProto,
    dims: list[_Dim],
    given: tuple[int, ...] | None,
    bound: dict[str, int],
    result: FixedInputs,
) -> Value:
    shown = display_name(info.name)
    sizes: list[int] = []
    fixed: dict[str, int] = {}
    open_axes: list[int] = []
    for axis, dim in enumerate(dims):
        if isinstance(dim, int):
            sizes.append(dim)
            continue
        if given is not None:
            size = given[axis]
        elif dim in bound:
            size = bound[dim]
        elif axis == 0:
            size = 1
            result.notes.append(
                f"input '{shown}': symbolic batch dimension set to 1; --shape gives another size, --buckets several"
            )
            if dim:
                bound[dim] = 1
        else:
            size = 0
            open_axes.append(axis)
        sizes.append(size)
        fixed[dim or f"dim {axis}"] = size
    if open_axes:
        labels = ", ".join(display_name(str(dims[axis])) or f"number {axis}" for axis in open_axes)
        example = "x".join("<size>" if axis in open_axes else str(size) for axis, size in enumerate(sizes))
        raise ModelError(
            f"input '{shown}' has symbolic dimensions: {labels}",
            hint=f"write --shape {shown}={example} with their sizes",
        )
    if any(size == 0 for size in sizes):
        raise ModelError(
            f"input '{shown}' has a dimension of size zero: {display_shape(tuple(sizes))}",
            hint="export the model with a size of at least one",
        )
    if fixed:
        result.symbolic[info.name] = fixed
    return Value(info.name, tuple(sizes), dtype_name(info.type.tensor_type.elem_type, f"input '{shown}'"))
