"""The ONNX file that a compiled model was made from."""

from __future__ import annotations

from pathlib import Path

from sparsetvm.errors import UsageError
from sparsetvm.examples import EXAMPLES, example_path
from sparsetvm.frontend.read import checked_digest


def recorded_model(library: Path, name: str, sha256: str) -> Path:
    """The file of that bare name beside the library, in the current folder or among the shipped examples, when it has
    that digest.

    Only there: what a manifest says must not make us open any file. Raises UsageError when there is no such file.
    """
    if Path(name).name != name or not name:
        raise UsageError(f"'{library}' does not say which model it was compiled from")
    shipped = [example_path(example) for example in EXAMPLES if f"{example}.onnx" == name]
    found = [path for path in (library.parent / name, Path(name), *shipped) if path.is_file()]
    for path in found:
        if checked_digest(path) == sha256:
            return path
    what = "has changed since" if found else "is neither beside it nor in the current folder"
    raise UsageError(f"the model '{name}' that '{library}' was compiled from {what}")
