"""Lookup format for sparse matrix times vector: 16 rows x a chunk of 32 columns at a time.

A chunk of x is two AVX-512 registers, that is the table of one `vpermi2ps`. A step multiplies 16 rows (lanes) by one
non-zero each: 16 column ids (uint8), one table lookup, one FMA with 16 weights; no gather. (slice of 16 rows, chunk)
pairs with the same number of steps form a bucket, so every inner loop has a static trip count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LANES = 16
CHUNK = 32


@dataclass(frozen=True)
class LookupFormat:
    """runs[i] = (chunk, slices, first slice entry, first step), grouped by part, then by steps per pair.

    first[part, s] : first[part, s + 1] are the runs of `part` whose pairs take steps[s] steps. permutation[i] is the
    original row of position i (padded positions repeat row 0 and are not read back).
    """

    runs: np.ndarray
    first: np.ndarray
    steps: tuple[int, ...]
    slices: np.ndarray
    values: np.ndarray
    columns: np.ndarray
    permutation: np.ndarray

    @property
    def padding(self) -> float:
        """Stored values per non-zero."""
        return self.values.size / max(1, int(np.count_nonzero(self.values)))


def pack_lookup(weight: np.ndarray, parts: int, sort_rows: bool) -> LookupFormat:
    """Format of `weight` (m, k), its row slices dealt to `parts` threads by work.

    `sort_rows` groups rows of similar length: less padding for uneven rows, one scatter of y at the end.
    """
    m, k = weight.shape
    count = np.count_nonzero(weight, axis=1)
    order = np.argsort(-count, kind="stable") if sort_rows else np.arange(m)
    rows, cols = -(-m // LANES) * LANES, -(-k // CHUNK) * CHUNK
    padded = np.zeros((rows, cols), np.float32)
    padded[:m, :k] = weight[order]
    slices, chunks = rows // LANES, cols // CHUNK
    blocks = padded.reshape(slices, LANES, chunks, CHUNK)
    needed = np.count_nonzero(blocks, axis=3).max(axis=1)  # (slices, chunks): steps of each pair
    part_of = _deal(needed.sum(axis=1), parts)
    steps = tuple(sorted(set(needed[needed > 0].tolist())))
    runs: list[tuple[int, int, int, int]] = []
    first = np.zeros((parts, len(steps) + 1), np.int32)
    slice_list, values, columns = [], [], []
    slice_count = step_count = 0
    for part in range(parts):
        first[part, 0] = len(runs)
        for s, step in enumerate(steps):
            for chunk in range(chunks):
                chosen = np.flatnonzero((needed[:, chunk] == step) & (part_of == part))
                if chosen.size:
                    runs.append((chunk, chosen.size, slice_count, step_count))
                    value, column = _steps(blocks[chosen, :, chunk], step)
                    slice_list.append(chosen)
                    values.append(value)
                    columns.append(column)
                    slice_count += chosen.size
                    step_count += chosen.size * step
            first[part, s + 1] = len(runs)
    permutation = np.zeros(rows, np.int32)
    permutation[:m] = order
    return LookupFormat(
        np.array(runs, np.int32).reshape(-1, 4),
        first,
        steps,
        np.concatenate(slice_list).astype(np.int32) if slice_list else np.zeros(0, np.int32),
        np.concatenate(values) if values else np.zeros(0, np.float32),
        np.concatenate(columns) if columns else np.zeros(0, np.uint8),
        permutation,
    )


def _steps(blocks: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and column ids of (slices, LANES, CHUNK) blocks as [slice][step][lane], zero-padded."""
    position = np.argsort(blocks == 0, axis=2, kind="stable")[:, :, :step]
    value = np.take_along_axis(blocks, position, axis=2)
    return value.transpose(0, 2, 1).ravel(), position.transpose(0, 2, 1).astype(np.uint8).ravel()


def _deal(work: np.ndarray, parts: int) -> np.ndarray:
    """Part of each slice: contiguous ranges of about equal work."""
    total = np.cumsum(work) - work / 2
    part: np.ndarray = np.minimum((total * parts / max(1.0, float(work.sum()))).astype(int), parts - 1)
    return part
