"""Arrays in .npz and .npy files; pickled objects are refused."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

from sparsetvm.core.files import write_whole
from sparsetvm.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


def read_arrays(path: str) -> dict[str, np.ndarray]:
    """Arrays of an .npz by name; the array of an .npy has the name "" (the only input of a model)."""
    import numpy as np

    try:
        with open(path, "rb") as file:
            start = file.read(6)
        if not start.startswith((b"PK", b"\x93NUMPY")):  # numpy takes anything else for pickled objects
            raise ValueError("it is no .npz or .npy file")
        loaded = np.load(path, allow_pickle=False)
        return {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"cannot read arrays from '{path}': {error}",
            hint="write it with numpy.savez(path, **{input_name: array})",
        ) from error


def write_arrays(path: str, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz with exactly this name."""
    import numpy as np

    try:
        write_whole(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
    except OSError as error:
        raise UsageError(f"cannot write '{path}': {error.strerror}", hint="name a file in a writable folder") from error
