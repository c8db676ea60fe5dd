"""Files of pruned patterns (positions, no values), e.g. of the Deep Learning Matrix Collection (Gale et al., SC 2020).

An .npz with three arrays for each matrix: "NAME|s" (rows, columns, non-zeros), "NAME|n" non-zeros of each row, "NAME|d"
the column of each non-zero minus that of the one before it in the row (the first of a row as it is), or the columns
themselves where there is any array "NAME|raw". A text file of lines "NAME,COLUMNS" beside it says for how many columns
of X a matrix is used in its network.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsetvm.errors import UsageError

MOST_ELEMENTS = 1 << 28  # of one dense matrix: 1 GiB of float32
_HINT = "docs/benchmarks.md describes the format"


@dataclass(frozen=True)
class Pattern:
    """Positions of the non-zeros of a rows x columns matrix in CSR form; indices grow within a row."""

    name: str
    rows: int
    columns: int
    indptr: np.ndarray
    indices: np.ndarray

    @property
    def sparsity(self) -> float:
        return 1.0 - len(self.indices) / (self.rows * self.columns)

    def weight(self, seed: int = 0) -> np.ndarray:
        """The dense float32 matrix with random normal values at the positions."""
        matrix = np.zeros((self.rows, self.columns), np.float32)
        row = np.repeat(np.arange(self.rows), np.diff(self.indptr))
        values = np.random.default_rng(seed).standard_normal(len(self.indices)).astype(np.float32)
        matrix[row, self.indices] = np.where(values == 0, np.float32(1), values)
        return matrix


def read_patterns(path: Path) -> Iterator[Pattern]:
    """The matrices of a file. Raises UsageError for anything that is not in the format; nothing in it is executed."""
    try:
        archive = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"'{path}' is no file of patterns: {error}", hint=_HINT) from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise UsageError(f"'{path}' holds a single array, not patterns", hint=_HINT)
    with archive:
        names = [key[:-2] for key in archive.files if key.endswith("|s")]
        if not names:
            raise UsageError(f"'{path}' holds no patterns", hint=_HINT)
        for name in names:
            try:
                yield _read(archive, name)
            except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
                raise UsageError(f"'{path}', matrix '{name}': {error}", hint=_HINT) from error


def read_columns(folder: Path) -> dict[str, int]:
    """NAME -> columns of X, from the text files of a folder that hold nothing but such lines."""
    found: dict[str, int] = {}
    for path in sorted(folder.glob("*.txt")):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        pairs = [line.rpartition(",") for line in lines]
        if all(name and count.isdigit() and int(count) > 0 for name, _, count in pairs):
            found.update((name, int(count)) for name, _, count in pairs)
    return found


def _read(archive: np.lib.npyio.NpzFile, name: str) -> Pattern:
    rows, columns, nnz = (int(v) for v in _integers(archive[f"{name}|s"]))
    if rows < 1 or columns < 1 or rows * columns > MOST_ELEMENTS:
        raise ValueError(f"{rows} x {columns} is no matrix of at most {MOST_ELEMENTS} elements")
    counts, stored = _integers(archive[f"{name}|n"]), _integers(archive[f"{name}|d"])
    if counts.shape != (rows,) or (counts < 0).any() or int(counts.sum()) != nnz or stored.shape != (nnz,):
        raise ValueError(f"the counts of its rows do not fit {nnz} non-zeros")
    indptr = np.concatenate([[0], np.cumsum(counts)])
    indices = stored
    if f"{name}|raw" not in archive.files and nnz:
        total = np.cumsum(stored)
        before = np.concatenate([[0], total])[indptr[:-1]]  # sum of all rows above
        indices = total - np.repeat(before, counts)
    _check_rows(indices, indptr, columns)
    return Pattern(name, rows, columns, indptr.astype(np.int64), indices.astype(np.int32))


def _integers(array: np.ndarray) -> np.ndarray:
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"an array of {array.ndim} dimensions and type {array.dtype} where integers belong")
    return array.astype(np.int64)


def _check_rows(indices: np.ndarray, indptr: np.ndarray, columns: int) -> None:
    if indices.size and not (indices.min() >= 0 and indices.max() < columns):
        raise ValueError(f"a column outside 0..{columns - 1}")
    starts = np.zeros(indices.size + 1, bool)
    starts[indptr] = True
    if (np.diff(indices) <= 0)[~starts[1:-1]].any():
        raise ValueError("the columns of a row do not grow")
