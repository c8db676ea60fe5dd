"""One-shot magnitude pruning of an ONNX model, for what-if questions about speed: the accuracy is not looked after."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from sparsetvm.analysis.magnitude import (
    Cost,
    PrunePattern,
    cost_of,
    fits,
    kept_by,
    parse_goal,
    parse_pattern,
    prune_weight,
)
from sparsetvm.analysis.weights import LayerWeight, ModelWeights
from sparsetvm.core.files import write_whole
from sparsetvm.core.results import PruneReport
from sparsetvm.errors import EnvironmentProblem, ModelError, UsageError, did_you_mean
from sparsetvm.frontend.child import Parcel, in_child
from sparsetvm.frontend.names import display_name
from sparsetvm.frontend.read import read_model, size_of

__all__ = ["SMALL_LAYER", "parse_pattern", "prune_model", "prune_weight"]

SMALL_LAYER = 1024  # weights; smaller layers are left alone unless they are named


def prune_model(
    path: str | Path,
    output: str | Path,
    sparsity: float | None,
    pattern: str = "unstructured",
    *,
    layers: Sequence[str] | None = None,
    skip_first_conv: bool = True,
    small: int = SMALL_LAYER,
    share: bool = False,
) -> PruneReport:
    """Prune the constant weights of Conv, Gemm and MatMul, each to the same sparsity, and write the model to `output`.

    pattern: see parse_goal; a sparsity behind its "@" goes before `sparsity`. share: layers of one operator and shape
    keep weights at the same places, where they are largest together, each layer relative to its mean.

    By default the first convolution, depthwise convolutions and layers with fewer than `small` weights stay as they
    are; `layers` (names, or shell patterns like "encoder*") prunes exactly those. A weight that other nodes read as
    well is copied, so that only the layer changes. The output is one file, without external data, and appears in one
    step.

    Raises UsageError for a bad pattern, sparsity or layer name, ModelError for a file that is no ONNX model or a result
    over 2 GiB, EnvironmentProblem when the output cannot be written.
    """
    wanted, target = parse_goal(pattern, sparsity)
    if Path(output).resolve() == Path(path).resolve():
        raise UsageError(f"the output would overwrite '{path}'", hint="choose another name with -o")
    named = None if layers is None else list(layers)
    found = in_child(
        _prune, os.fspath(path), target, str(wanted), named, skip_first_conv, small, share, size=size_of(path)
    )
    _write(found.arrays[0], Path(output))
    return PruneReport(model=str(path), output=str(output), pattern=str(wanted), **found.value)


def _prune(
    path: str, sparsity: float, pattern: str, layers: list[str] | None, skip_first_conv: bool, small: int, share: bool
) -> Parcel:
    """What the limited child does: the fields of the report, and the bytes of the pruned model."""
    proto, wanted = read_model(path).proto, parse_pattern(pattern)
    weights = ModelWeights(proto)
    skipped = _skipped(weights.layers, layers, wanted, skip_first_conv, small)
    chosen = [layer for layer in weights.layers if layer.name not in skipped]
    together = _together(chosen, sparsity, wanted) if share else {}

    def change(layer: LayerWeight) -> np.ndarray:
        kept = together.get(layer.name)
        kept = kept_by(layer.matrix, sparsity, wanted, layer.taps) if kept is None else kept
        return np.where(kept, layer.matrix, np.zeros((), layer.matrix.dtype))

    pruned = weights.rewrite(chosen, change)
    costs = {layer.name: cost_of(layer.matrix, pruned[layer.name]) for layer in chosen}
    total = sum(matrix.size for matrix in pruned.values())
    zeros = sum(matrix.size - int(np.count_nonzero(matrix)) for matrix in pruned.values())
    rows = [
        _row(layer, pruned.get(layer.name), skipped.get(layer.name, ""), costs.get(layer.name, Cost()))
        for layer in weights.layers
    ]
    try:
        content = np.frombuffer(proto.SerializeToString(), np.uint8)
    except (EncodeError, ValueError) as error:
        raise ModelError("the pruned model does not fit into one file of 2 GiB") from error
    shares = sum(costs.values(), Cost()).shares()
    return Parcel({"sparsity": zeros / total if total else 0.0, "layers": rows, **shares}, [content])


def _together(layers: Sequence[LayerWeight], sparsity: float, pattern: PrunePattern) -> dict[str, np.ndarray]:
    """Layer name -> what is kept, of layers that share their shape with another one."""
    alike: dict[tuple[str, tuple[int, ...], tuple[int, int]], list[LayerWeight]] = {}
    for layer in layers:
        spatial = layer.shape[2:] if layer.op == "Conv" else ()
        alike.setdefault((layer.op, spatial, layer.matrix.shape), []).append(layer)
    kept: dict[str, np.ndarray] = {}
    for group in alike.values():
        if len(group) > 1:
            squares = sum(_relative_squares(layer.matrix) for layer in group)
            mask = kept_by(np.sqrt(squares), sparsity, pattern, group[0].taps)
            kept.update({layer.name: mask for layer in group})
    return kept


def _relative_squares(matrix: np.ndarray) -> np.ndarray:
    squares: np.ndarray = np.square(matrix, dtype=np.float64)
    return np.asarray(squares / (squares.mean() or 1.0))


def _skipped(
    layers: Sequence[LayerWeight], named: Sequence[str] | None, pattern: PrunePattern, skip_first_conv: bool, small: int
) -> dict[str, str]:
    """Layer name -> why it is not pruned."""
    skipped: dict[str, str] = {}
    if named is not None:
        names = [layer.name for layer in layers]
        for wanted in named:
            if not fnmatch.filter(names, wanted):
                raise UsageError(
                    f"no layer with a constant weight is called '{wanted}'{did_you_mean(wanted, names)}",
                    hint="sparsetvm inspect MODEL lists the layers",
                )
    first_conv = next((layer.name for layer in layers if layer.op == "Conv"), None) if skip_first_conv else None
    for layer in layers:
        if not fits(pattern, *layer.matrix.shape):
            skipped[layer.name] = f"smaller than {pattern}"
        elif named is not None:
            if not any(fnmatch.fnmatchcase(layer.name, wanted) for wanted in named):
                skipped[layer.name] = "not selected"
        elif layer.name == first_conv:
            skipped[layer.name] = "first convolution"
        elif layer.depthwise:
            skipped[layer.name] = "depthwise convolution"
        elif layer.matrix.size < small:
            skipped[layer.name] = f"fewer than {small} weights"
    return skipped


def _row(layer: LayerWeight, pruned: np.ndarray | None, reason: str, cost: Cost) -> dict[str, Any]:
    matrix = layer.matrix if pruned is None else pruned
    nnz = int(np.count_nonzero(matrix))
    return {
        "name": display_name(layer.name),
        "op": layer.op,
        "shape": f"{matrix.shape[0]}x{matrix.shape[1]}",
        "sparsity_before": 1.0 - int(np.count_nonzero(layer.matrix)) / matrix.size,
        "sparsity": 1.0 - nnz / matrix.size,
        "nnz": nnz,
        "pruned": pruned is not None,
        "reason": reason,
        **cost.shares(),
    }


def _write(data: np.ndarray, output: Path) -> None:
    try:
        write_whole(output, lambda file: file.write(data.data))
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write {output}: {error.strerror or error}", hint="choose another file with -o"
        ) from error
