"""The part of a manifest that the runtime needs: names, shapes and threads, and the hash of the library.

`build` writes `<name>.so.json` beside `<name>.so`; this file reads it without importing the compiler.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sparsetvm.core.arithmetic import TOLERANCES
from sparsetvm.core.buckets import Dynamic
from sparsetvm.core.target import Target
from sparsetvm.core.weights_file import WeightsFile, weights_path
from sparsetvm.errors import ModelError

MANIFEST_SCHEMA = 1
# The function of a library for a GPU whose tensors lie in the same place at every call (build/emit_cuda.py).
STATIC_MAIN = "main_static"

# Relative L2 errors that outputs may have beside another runtime's. Two computations in float32 with sums of length k
# differ by about sqrt(k) * 6e-8: 1e-5 leaves room for the longest sums of common networks and is far below any wrong
# index or lost weight. A runtime that keeps float16 between operators rounds by up to 5e-4 at each; over hundreds of
# them that adds up, at random, to 5e-3.
FLOAT16_TOLERANCE = 1e-2
_MAX_TOLERANCE = 0.1  # of a network with ten thousand layers in TF32
_MAX_THREADS = 4096
_MAX_ELEMENTS = 1 << 40
_INTEGERS = tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
_DTYPES = frozenset((*_INTEGERS, "float16", "float32", "float64", "bool"))


def bucket_main(size: int, *, static: bool = False) -> str:
    """The function of a library with buckets that runs one of them; static: as `STATIC_MAIN`."""
    return f"{STATIC_MAIN if static else 'main'}_{size}"


class TensorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """An input or output: ONNX name, shape, numpy dtype name.

    axis: where the model's open dimension lies, None without it; `shape` has the largest bucket there.
    range: smallest and largest value that the model admits, None for no limit, or none that is known.
    random_below: random draws are whole numbers from 0 to random_below - 1, None where zeros are drawn.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axis: int | None = None
    range: tuple[int, int] | None = None
    random_below: int | None = None

    def sized(self, size: int) -> TensorInfo:
        """The tensor of a run of `size` positions."""
        if self.axis is None:
            return self
        shape = tuple(size if at == self.axis else dim for at, dim in enumerate(self.shape))
        return msgspec.structs.replace(self, shape=shape)


class ModelInfo(msgspec.Struct, frozen=True):
    """The ONNX file: its name without a folder, digest (`frontend.read.ModelFile.digest`) and arithmetic."""

    name: str = ""
    sha256: str = ""
    arithmetic: str = "float32"


class Tolerances(msgspec.Struct, frozen=True):
    """What `verify` accepts."""

    rel_l2_error: float = TOLERANCES["float32"]


class Signature(msgspec.Struct):
    """What of a manifest anything depends on; checked, while the rest is only shown."""

    schema: int
    library_sha256: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    threads: int = 1
    weights: WeightsFile | None = None
    kernels: list[dict[str, str]] = []
    target: Target | None = None
    model: ModelInfo = ModelInfo()
    tolerances: Tolerances = Tolerances()
    dynamic: Dynamic | None = None


def _problem(signature: Signature) -> str:
    """Why a well-typed manifest makes no sense, "" when it does: a manifest is hostile input like any other file."""
    for info in (*signature.inputs, *signature.outputs):
        if info.dtype not in _DTYPES:
            return f"'{info.name}' is of the unknown type '{info.dtype}'"
        if any(size < 0 for size in info.shape) or math.prod(info.shape) > _MAX_ELEMENTS:
            return f"'{info.name}' has an impossible shape"
        if info.axis is not None and _wrong_axis(info, signature.dynamic):
            return f"'{info.name}' has an impossible open dimension"
        if not _possible_values(info):
            return f"'{info.name}' has an impossible range of values"
    if signature.dynamic is not None and (problem := signature.dynamic.problem()):
        return problem
    if signature.dynamic is not None and all(info.axis is None for info in signature.inputs):
        return "no input has the open dimension"
    if not 1 <= signature.threads <= _MAX_THREADS:
        return f"{signature.threads} threads"
    if not 0 <= signature.tolerances.rel_l2_error <= _MAX_TOLERANCE:
        return f"a tolerance of {signature.tolerances.rel_l2_error}"
    if signature.target is not None and not (signature.target.kind in ("cpu", "cuda") and signature.target.device >= 0):
        return "an unknown target"
    return ""


def _possible_values(info: TensorInfo) -> bool:
    """Whether the type has the values of `range`, and those that are drawn."""
    if info.range is None and info.random_below is None:
        return True
    if info.dtype not in (*_INTEGERS, "bool"):
        return False
    limits = (0, 1) if info.dtype == "bool" else (int(np.iinfo(info.dtype).min), int(np.iinfo(info.dtype).max))
    low, high = info.range or limits
    below = limits[1] + 1 if info.random_below is None else info.random_below
    return limits[0] <= low <= high <= limits[1] and 1 <= below <= limits[1] + 1


def _wrong_axis(info: TensorInfo, dynamic: Dynamic | None) -> bool:
    axis = info.axis or 0
    return (
        dynamic is None
        or not dynamic.buckets
        or not 0 <= axis < len(info.shape)
        or info.shape[axis] != dynamic.buckets[-1]
    )


def manifest_path(library: Path) -> Path:
    """Where the manifest of a library stands: m.so -> m.so.json."""
    return library.with_name(library.name + ".json")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_manifest(library: Path) -> tuple[dict[str, Any], Signature] | None:
    """The manifest beside `library` and its signature, None when there is none.

    Raises ModelError when it cannot be understood or belongs to another library.
    """
    path = manifest_path(library)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"cannot read manifest '{path}': {error.strerror}", hint="check its owner and mode") from error
    again = "compile the model again, or delete the manifest if you trust the library"
    try:
        manifest = msgspec.json.decode(text, type=dict[str, Any])
        if manifest.get("schema") != MANIFEST_SCHEMA:
            raise ModelError(
                f"manifest '{path}' has schema {manifest.get('schema')!r}, this version reads {MANIFEST_SCHEMA}",
                hint=again,
            )
        signature = msgspec.convert(manifest, Signature)
        problem = _problem(signature)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ModelError(f"manifest '{path}' is damaged: {error}", hint=again) from error
    if problem:
        raise ModelError(f"manifest '{path}' is damaged: {problem}", hint=again)
    if sha256_of(library) != signature.library_sha256:
        raise ModelError(
            f"'{library}' is not the library that its manifest describes (SHA-256 differs): "
            "it was changed or replaced after it was compiled",
            hint="copy the .so and its .so.json together, or compile the model again",
        )
    if signature.weights is not None:
        weights = weights_path(library)
        if not weights.is_file() or sha256_of(weights) != signature.weights.sha256:
            raise ModelError(
                f"'{weights}' is not there, or not the weights that the manifest describes (SHA-256 differs)",
                hint="copy the .so, its .so.json and its .so.weights together, or compile the model again",
            )
    return manifest, signature
