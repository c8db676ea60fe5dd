"""Weights for tensor cores: panels of rows, each with the columns that any of its rows has, 16 of them a step.

Blocks, column vectors and whatever else makes rows share columns are all such panels; a panel is dense in its columns,
so zeros inside of it are stored and multiplied. Columns are taken in runs of 16, 8 or 1 neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.core.arithmetic import Arithmetic, round_to_tf32, to_bfloat16

STEP = 16  # columns of a product of tensor cores in float16, of two in TF32


@dataclass(frozen=True)
class PanelSteps:
    """heads: (panels, 4) int32: first row, first step, steps, 0; in the order in which blocks take them.

    starts: (steps, 16 / run) int32 first columns of the runs of a step; of runs of one column in the order 2 t,
    2 t + 1, 2 t + 8, 2 t + 9 for t = 0 ... 3. fragments: (steps, rows / 16, 32, 8) float16 (or bits of bfloat16), as
    `mma_half` of tensor.cuh wants A, or (steps, rows / 16, 2, 32, 4) float32, as two `mma_tf32` of device.cuh want it.
    """

    heads: np.ndarray
    starts: np.ndarray
    fragments: np.ndarray


def panel_steps(
    weight: np.ndarray, rows: int, run: int, together: int, every: bool = False, factors: Arithmetic = "float16"
) -> PanelSteps:
    """Pack an (m, k) float32 weight. together: panels that one block has; blocks get like amounts of work. every: each
    panel has all columns. factors: what weights are rounded to.

    run: 16, 8 (k at least that) or 1. Raises OverflowError for weights beyond what they are rounded to.
    """
    m, k = weight.shape
    tf32 = factors == "tf32"
    rounded = round_to_tf32(weight) if tf32 else to_bfloats(weight) if factors == "bfloat16" else to_halves(weight)
    runs = runs_of(np.ones(weight.shape, bool) if every else weight != 0, rows, run)
    panel, number = np.nonzero(runs)
    counts, per_step = runs.sum(axis=1), STEP // run
    steps = -(-counts // per_step)
    firsts = np.concatenate([[0], np.cumsum(steps)])
    # A place in the steps of its panel for each run; places that no run takes repeat column 0 with weights of zero.
    place = (
        np.arange(len(panel))
        - np.repeat(np.cumsum(counts) - counts, counts)
        + np.repeat(firsts[:-1], counts) * per_step
    )
    starts = np.zeros(firsts[-1] * per_step, np.int32)
    starts[place] = np.minimum(number * run, k - run)
    values = np.zeros((firsts[-1] * per_step, rows, run), rounded.dtype)
    padded = np.zeros((runs.shape[0] * rows, runs.shape[1] * run), rounded.dtype)
    padded[:m, :k] = rounded
    if k % run:  # the last run begins earlier: it has the last columns, those that the run before has too are zero
        padded[:, -run:] = 0
        padded[:m, -(k % run) :] = rounded[:, -(k % run) :]
    values[place] = padded.reshape(-1, rows, runs.shape[1], run).swapaxes(1, 2)[panel, number]
    order = _dealt(steps, together)
    heads = np.zeros((len(steps), 4), np.int32)
    heads[:, 0], heads[:, 1], heads[:, 2] = order * rows, firsts[order], steps[order]
    dense = values.reshape(firsts[-1], per_step, rows, run).swapaxes(1, 2).reshape(firsts[-1], rows, STEP)
    starts = starts.reshape(firsts[-1], per_step)
    if run == 1:
        starts = starts.reshape(-1, 2, 4, 2).swapaxes(1, 2).reshape(-1, STEP)
    return PanelSteps(heads, starts, in_tf32_fragments(dense) if tf32 else in_fragments(dense))


def in_fragments(tiles: np.ndarray) -> np.ndarray:
    """Tiles (..., rows, 16) as (..., rows / 16, 32 lanes, 8): row 16 i + 8 r + g, column 8 c + 2 t + e is number
    4 c + 2 r + e of lane 4 g + t."""
    *outer, rows, _ = tiles.shape
    at = len(outer)
    split = tiles.reshape(*outer, rows // 16, 2, 8, 2, 4, 2)
    moved = split.transpose(*range(at), at, at + 2, at + 4, at + 3, at + 1, at + 5)
    return np.ascontiguousarray(moved).reshape(*outer, rows // 16, 32, 8)


def in_tf32_fragments(tiles: np.ndarray) -> np.ndarray:
    """Tiles (..., rows, 16) as (..., rows / 16, 2, 32 lanes, 4): row 16 i + 8 r + g, column 8 c + 2 t + e is number
    2 e + r of lane 4 g + t of product c, whose X has row 8 c + 2 t + e for column t + 4 e."""
    *outer, rows, _ = tiles.shape
    at = len(outer)
    split = tiles.reshape(*outer, rows // 16, 2, 8, 2, 4, 2)
    moved = split.transpose(*range(at), at, at + 3, at + 2, at + 4, at + 5, at + 1)
    return np.ascontiguousarray(moved).reshape(*outer, rows // 16, 2, 32, 4)


def to_halves(weight: np.ndarray) -> np.ndarray:
    """A float32 weight in float16. Raises OverflowError for weights beyond that."""
    with np.errstate(over="ignore"):
        halves = weight.astype(np.float16)
    if not np.isfinite(halves).all():
        raise OverflowError("a weight is not finite in float16")
    return halves


def to_bfloats(weight: np.ndarray) -> np.ndarray:
    """The bits of a float32 weight in bfloat16. Raises OverflowError for weights that would become infinite."""
    bits = to_bfloat16(weight)
    if (bits & np.uint16(0x7FFF) >= np.uint16(0x7F80)).any():
        raise OverflowError("a weight is not finite in bfloat16")
    return bits


def runs_of(mask: np.ndarray, rows: int, run: int) -> np.ndarray:
    """Boolean (panels, runs): which runs of columns a panel has."""
    m, k = mask.shape
    padded = np.zeros((-(-m // rows) * rows, -(-k // run) * run), bool)
    padded[:m, :k] = mask
    return np.asarray(padded.reshape(padded.shape[0] // rows, rows, -1, run).any(axis=(1, 3)))


def _dealt(steps: np.ndarray, together: int) -> np.ndarray:
    """Panels in the order of the blocks, `together` each: dealt from the longest to the shortest, there and back."""
    blocks = -(-len(steps) // together)
    ranked = np.full(blocks * together, -1)
    ranked[: len(steps)] = np.argsort(-steps, kind="stable")
    hands = ranked.reshape(together, blocks)
    hands[1::2] = hands[1::2, ::-1]
    order = hands.T.reshape(-1)
    # Only the last block may lack panels: those that others lack move up.
    return order[order >= 0]
