"""Generated weights of known structure, and what a right verdict about them is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.analysis.structure import Structure

WAYS = ("plain", "rows", "columns", "both", "offset")


@dataclass(frozen=True)
class Case:
    """A weight of r x c blocks. way: one of WAYS; strays: share of the non-zeros added outside; dead: of the rows."""

    shape: tuple[int, int]
    block: tuple[int, int]
    zeros: float
    way: str = "plain"
    strays: float = 0.0
    dead: float = 0.0
    seed: int = 0


def random_mask(rng: np.random.Generator, shape: tuple[int, int], density: float) -> np.ndarray:
    """Exactly that share of ones at random places."""
    flat = np.zeros(shape[0] * shape[1], np.float32)
    flat[: round(density * flat.size)] = 1.0
    return rng.permutation(flat).reshape(shape)


def n_of_m(rng: np.random.Generator, shape: tuple[int, int], n: int, m: int) -> np.ndarray:
    order = rng.random((shape[0], shape[1] // m, m)).argsort(axis=2).argsort(axis=2)
    return (order < n).reshape(shape).astype(np.float32)


def make(case: Case) -> tuple[np.ndarray, int]:
    """(weight, number of strays)."""
    rng = np.random.default_rng(case.seed)
    (m, k), (r, c) = case.shape, case.block
    coarse = random_mask(rng, (m // r + 2, k // c + 2), 1.0 - case.zeros)
    top, left = (rng.integers(r), rng.integers(c)) if case.way == "offset" else (0, 0)
    mask = np.kron(coarse, np.ones((r, c), np.float32))[top : top + m, left : left + k].copy()
    if case.dead:
        mask[rng.permutation(m)[: round(case.dead * m)]] = 0
    free = np.flatnonzero(mask.ravel() == 0)
    strays = rng.choice(free, round(case.strays * np.count_nonzero(mask)), replace=False)
    mask.ravel()[strays] = 1
    if case.way in ("rows", "both"):
        mask = mask[rng.permutation(m)]
    if case.way in ("columns", "both"):
        mask = mask[:, rng.permutation(k)]
    return mask * rng.choice([-1.5, 0.5, 2.0], (m, k)).astype(np.float32), strays.size


def outside(weight: np.ndarray, found: Structure, thin: float = 0.0) -> tuple[int, int]:
    """(non-zeros outside blocks that are more than half full, zeros in those) where the structure says they are.

    Independent of the detector: a loop over the blocks of the permuted weight. Dead rows and columns may be anywhere,
    and so may those that have at most `thin` of the mean row's or column's non-zeros.
    """
    mask = weight != 0
    mask = mask if found.row_permutation is None else mask[found.row_permutation]
    mask = mask if found.column_permutation is None else mask[:, found.column_permutation]
    starts = []
    for size, step, first in zip(mask.shape, found.block, found.offset, strict=True):
        starts.append(sorted({0, *range(first, size, step)}))
    per_row, per_column = mask.sum(axis=1), mask.sum(axis=0)
    rows = (per_row > thin * per_row[per_row > 0].mean()).astype(np.int64)
    columns = (per_column > thin * per_column[per_column > 0].mean()).astype(np.int64)
    inner = mask * rows[:, None] * columns
    sums = np.add.reduceat(np.add.reduceat(inner, starts[0], axis=0), starts[1], axis=1)
    areas = np.outer(np.add.reduceat(rows, starts[0]), np.add.reduceat(columns, starts[1]))
    kept = sums > 0.5 * areas
    return int(mask.sum() - sums[kept].sum()), int((areas - sums)[kept].sum())


def wrong(case: Case, weight: np.ndarray, strays: int, found: Structure) -> str:
    """What is wrong about a verdict, "" when it is right. A larger block is right when it holds everywhere."""
    if found.kind not in ("block", "mixed"):
        return f"{found.kind}"
    if found.block != case.block:
        larger = all(ours % true == 0 for ours, true in zip(found.block, case.block, strict=True))
        if not larger or strays or outside(weight, found) != (0, 0):
            return f"{found.block}"
    lost, holes = outside(weight, found)
    if lost != found.strays:
        lost, holes = outside(weight, found, thin=0.05)
    if lost != found.strays or (found.kind == "mixed") != (lost > 0):
        return f"{found.kind}: says {found.strays} strays, {lost} are outside"
    # Strays next to blocks of the same row, or in a block of dead rows, cannot be told from blocks.
    if abs(lost - strays) > 0.3 * strays + 3 or holes > 0.05 * np.count_nonzero(weight):
        return f"{lost} outside, {holes} holes; {strays} strays were made"
    return ""
