"""Outputs of a compiled model beside ONNX Runtime's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsetvm.core.arithmetic import TOLERANCES
from sparsetvm.core.results import LayerError, OutputError, VerifyReport
from sparsetvm.errors import EnvironmentProblem, UsageError
from sparsetvm.frontend.read import checked_digest
from sparsetvm.runtime.arrays import size_of_shapes
from sparsetvm.runtime.difference import Difference
from sparsetvm.runtime.module import Module


def onnxruntime_session(model: Path, threads: int) -> Any:
    """An ONNX Runtime CPU session with `threads` threads.

    Raises ModelError for a file that our own reader refuses: ONNX Runtime would look for the external data itself.
    EnvironmentProblem when the package is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentProblem("onnxruntime is not installed", hint="pip install onnxruntime") from error
    checked_digest(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EnvironmentProblem(f"ONNX Runtime cannot load '{model}': {error}", hint="check the model file") from error


def check_signature(session: Any, module: Module, reference: Path) -> None:
    """Raise UsageError when `reference`, open in `session`, cannot be the model of `module`."""
    inputs = {entry.name: entry.shape for entry in session.get_inputs()}
    types = {entry.name: _dtype_name(entry.type) for entry in session.get_inputs()}
    outputs = {entry.name for entry in session.get_outputs()}
    problem = ""
    for info in module.inputs:
        dims = inputs.get(info.name)
        if dims is None:
            problem = f"no input '{info.name}'"
        elif len(dims) != len(info.shape) or any(
            isinstance(dim, int) and (dim != size or axis == info.axis)
            for axis, (dim, size) in enumerate(zip(dims, info.shape, strict=True))
        ):
            problem = f"input '{info.name}' of shape {dims}, not {list(info.shape)}"
        elif types[info.name] != info.dtype:
            problem = f"input '{info.name}' of type {types[info.name]}, not {info.dtype}"
    for info in module.outputs:
        problem = problem if info.name in outputs else f"no output '{info.name}'"
    if problem:
        raise UsageError(f"'{reference}' has {problem}", hint="pass the model that the .so was compiled from")


def _dtype_name(text: str) -> str:
    """numpy's name of a type as ONNX Runtime writes it: tensor(float16)."""
    name = text.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


def verify_module(
    module: Module,
    reference: Path,
    *,
    samples: int,
    tolerance: float | None,
    seed: int,
    per_layer: bool = False,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> VerifyReport:
    """Run `samples` random inputs through both; the report has the worst errors, with `per_layer` also of each layer.

    tolerance: None for the manifest's, which is larger for a float16 model (core/manifest.py says why). shapes:
    the size to run of a model with an open dimension; all its buckets and sizes between them when None.
    """
    if tolerance is None:
        tolerance = module.signature.tolerances.rel_l2_error if module.signature else TOLERANCES["float32"]
    session = onnxruntime_session(reference, module.threads)
    check_signature(session, module, reference)
    found: dict[str, Difference] = {}
    overflowed: set[str] = set()
    sizes = _sizes(module, shapes)
    for sample, size in itertools.product(range(samples), sizes):
        inputs = module.random_inputs(seed + sample, size=size)
        ours = module.run(inputs)
        theirs = dict(zip((o.name for o in session.get_outputs()), session.run(None, inputs), strict=True))
        for name, value in ours.items():
            _compare(name, value, theirs[name], found.setdefault(name, Difference()))
            if np.isfinite(value).all() and not np.isfinite(theirs[name]).all():
                overflowed.add(name)
    outputs = [
        OutputError(name=name, rel_l2_error=difference.relative, max_abs_error=difference.largest)
        for name, difference in found.items()
    ]
    relative = max(output.rel_l2_error for output in outputs)
    layers: list[LayerError] = []
    notes = [*_notes(module, sorted(overflowed)), *_undrawn(module), *_zeros(found)]
    if module.dynamic is not None:
        notes.append(f"dimension '{module.dynamic.name}' ran with {', '.join(map(str, sizes))}")
    same = True
    if per_layer:
        from sparsetvm.runtime.verify_layers import verify_layers

        layers, same = verify_layers(module, reference, samples=samples, tolerance=tolerance, seed=seed)
        if not same:
            notes.append(
                f"the same layers, compiled again, compute other outputs than '{module.path}': compile the model again"
            )
    return VerifyReport(
        passed=bool(relative <= tolerance and same and all(layer.passed for layer in layers)),
        tolerance=tolerance,
        rel_l2_error=relative,
        max_abs_error=max(output.max_abs_error for output in outputs),
        outputs=outputs,
        notes=notes,
        layers=layers,
    )


def _sizes(module: Module, shapes: Mapping[str, tuple[int, ...]] | None) -> list[int | None]:
    """Sizes of the open dimension to run: every bucket, one less than it and, where slices may follow, one more."""
    given = size_of_shapes(module, shapes)
    if module.dynamic is None or given is not None:
        return [given]
    steps = (-1, 0, 1) if module.dynamic.splits else (-1, 0)
    near = {size + step for size in module.dynamic.buckets for step in steps}
    return [*sorted(near - {0})]


def _notes(module: Module, overflowed: list[str]) -> list[str]:
    """What to know about a reference that computes in float16. overflowed: outputs that only we have finite."""
    if module.signature is None or module.signature.model.arithmetic != "float16":
        return []
    notes = ["the model is float16: the reference may round to it at every operator, this module computes in float32"]
    if overflowed:
        names = ", ".join(f"'{name}'" for name in overflowed)
        notes.append(f"the reference overflows float16 (65504) in {names}, this module does not")
    return notes


def _undrawn(module: Module) -> list[str]:
    """A note about inputs of which nothing but zeros was tried."""
    zeros = [info.name for info in module.inputs if np.dtype(info.dtype).kind in "iub" and info.random_below is None]
    if not zeros:
        return []
    names = ", ".join(f"'{name}'" for name in zeros)
    return [f"zeros were given for {names}: which other integers the model admits is not known"]


def _zeros(found: Mapping[str, Difference]) -> list[str]:
    """A note about outputs that are zero whatever the inputs were."""
    names = ", ".join(f"'{name}'" for name, difference in found.items() if difference.says_nothing)
    if not names:
        return []
    return [f"zeros are all that the reference has in {names}, which says little of the layers before: try --per-layer"]


def _compare(name: str, ours: np.ndarray, theirs: np.ndarray, difference: Difference) -> None:
    if ours.shape != theirs.shape:
        raise UsageError(
            f"output '{name}' has shape {ours.shape}, the reference {theirs.shape}",
            hint="pass the model that the .so was compiled from",
        )
    difference.add(ours, theirs)
