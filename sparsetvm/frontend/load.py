"""Load an ONNX model as a `Graph`: static shapes, constants as arrays, layer names kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import defs

from sparsetvm.core.graph import Graph
from sparsetvm.errors import ModelError
from sparsetvm.frontend.constants import take_initializers
from sparsetvm.frontend.functions import inline_functions
from sparsetvm.frontend.import_graph import FLOAT_TYPES_HINT, GraphImporter
from sparsetvm.frontend.names import display_name
from sparsetvm.frontend.read import read_model
from sparsetvm.frontend.safe_attributes import check_attributes
from sparsetvm.frontend.shapes import fix_inputs, symbolic_dims

MIN_OPSET = 9
TESTED_OPSET = 21
_FOREIGN_FLOATS = ("bfloat", "float8", "float6", "float4")


@dataclass
class LoadedModel:
    """A model ready for analysis and rewriting.

    digest: sha256 of the file and its external data. notes: what the user should know, one sentence each.
    symbolic: input name -> {dimension: size} for each dimension that the file leaves open.
    """

    graph: Graph
    path: Path
    digest: str
    notes: list[str] = field(default_factory=list)
    symbolic: dict[str, dict[str, int]] = field(default_factory=dict)


def load_model(
    path: str | Path,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> LoadedModel:
    """Load an ONNX file (opset 9-21, float32 or float16).

    `shapes`: input name -> shape for inputs with symbolic dimensions (`--shape`); a symbolic first dimension defaults
    to 1. `sizes`: sizes of symbolic dimensions by their names. Raises ModelError when the model is broken, unsafe or
    not supported, UsageError when `shapes` does not fit.
    """
    file = read_model(path)
    notes: list[str] = []
    graph, opset = file.proto.graph, _opset(file.proto, notes)
    constants = take_initializers(graph)
    inputs = fix_inputs([info for info in graph.input if info.name not in constants], shapes, sizes)
    check_attributes(file.proto)
    proto = inline_functions(file.proto, constants)
    outputs = [info.name for info in proto.graph.output]
    if not outputs:
        raise ModelError("the model has no outputs", hint="export it again: nothing would be computed")
    importer = GraphImporter(opset, inputs.values, outputs, constants)
    importer.import_nodes(proto.graph.node, {})
    imported = importer.finish(proto.graph.name)
    _check_types(imported)
    for name in outputs:
        if 0 in imported.values[name].shape:
            raise ModelError(f"output '{display_name(name)}' is of size zero", hint="remove this output")
        if imported.values[name].is_constant:
            notes.append(f"output '{display_name(name)}' is a constant: it does not depend on any input")
    return LoadedModel(imported, file.path, file.digest, inputs.notes + notes, inputs.symbolic)


def load_symbolic_dims(
    path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, dict[str, list[int]]]:
    """Which dimensions the file leaves open, and where inputs have them (`frontend.shapes.symbolic_dims`)."""
    graph = read_model(path).proto.graph
    constants = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    return symbolic_dims([info for info in graph.input if info.name not in constants], shapes)


def _check_types(graph: Graph) -> None:
    """Raise ModelError naming the first value that holds texts or is of a float type that numpy does not know, bfloat16
    above all.
    """
    producers = graph.producers()
    for value in graph.values.values():
        if value.dtype == "object":
            raise ModelError(f"'{display_name(value.name)}' holds strings", hint="cut text processing off the model")
        if value.dtype.startswith(_FOREIGN_FLOATS):
            node = producers.get(value.name)
            raise ModelError(
                f"'{display_name(value.name)}' is of type {value.dtype}",
                layer=display_name(node.name) if node else None,
                hint=FLOAT_TYPES_HINT,
            )


def _opset(proto: onnx.ModelProto, notes: list[str]) -> int:
    """The opset of the standard operators; adds a note for versions newer than those tested."""
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    opset = versions.get("", versions.get("ai.onnx"))
    if opset is None:
        raise ModelError(
            "the model imports no standard ONNX operators", hint="export it again with torch.onnx or similar"
        )
    if opset < MIN_OPSET:
        raise ModelError(
            f"opset {opset} is too old (supported: {MIN_OPSET} to {TESTED_OPSET})",
            hint="convert it: onnx.version_converter.convert_version(model, 13)",
        )
    if opset > defs.onnx_opset_version():
        raise ModelError(
            f"opset {opset} is newer than the installed onnx package knows ({defs.onnx_opset_version()})",
            hint=f"export with opset_version={TESTED_OPSET}, or update the onnx package",
        )
    if opset > TESTED_OPSET:
        notes.append(f"opset {opset} is newer than {TESTED_OPSET}, the newest that is tested")
    return int(opset)
