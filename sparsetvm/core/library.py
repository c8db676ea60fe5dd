"""What is in a compiled library, told by its manifest: nothing of the library is loaded or run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from sparsetvm.core.manifest import TensorInfo, manifest_path, read_manifest
from sparsetvm.core.results import LibraryLayer, LibraryReport
from sparsetvm.errors import ModelError, UsageError

_ELF = b"\x7fELF"


def is_library(path: Path) -> bool:
    """Whether a file is a shared library and no model. One that is called .onnx is taken for a damaged model."""
    if path.suffix == ".onnx":
        return False
    with path.open("rb") as file:
        return file.read(len(_ELF)) == _ELF


def describe_library(path: Path) -> LibraryReport:
    """The layers of a library, with their kernels and times, its inputs, outputs and target.

    Raises UsageError when there is no file or no manifest beside it, ModelError when they do not belong together.
    """
    if not path.is_file():
        raise UsageError(f"'{path}' is no file", hint="sparsetvm compile MODEL -o m.so writes one")
    found = read_manifest(path)
    if found is None:
        raise UsageError(
            f"no manifest beside '{path}'", hint=f"copy '{manifest_path(path).name}' along: it says what is inside"
        )
    manifest, signature = found
    try:
        layers = msgspec.convert(manifest.get("layers", []), list[LibraryLayer])
    except (msgspec.ValidationError, RecursionError) as error:
        raise ModelError(f"the manifest of '{path}' is damaged: {error}", hint="compile the model again") from error
    return LibraryReport(
        library=str(path),
        bytes=path.stat().st_size,
        model=signature.model.name,
        target="" if signature.target is None else str(signature.target),
        threads=signature.threads,
        versions={name: str(manifest.get(name, "")) for name in ("sparsetvm", "tvm")},
        inputs=[_tensor(info) for info in signature.inputs],
        outputs=[_tensor(info) for info in signature.outputs],
        layers=layers,
        kernels=len(signature.kernels),
    )


def _tensor(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "shape": list(info.shape), "dtype": info.dtype}
