"""Weights for tensor cores: groups of panels of rows that have columns in common, so that X is read once for a group.

A panel is dense in its runs of columns, so zeros inside of it are stored and multiplied (formats/panel_steps.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.formats.panel_steps import STEP, in_fragments, runs_of, to_halves

START_BITS = 24  # of a run: where it begins
HEAD = 4  # numbers of a group before the rows of its panels


@dataclass(frozen=True)
class PanelGroups:
    """groups: (groups, HEAD + together) int32: first run, stages, first tile, 0, first rows of the panels (m where
    there is none); from the most stages to the fewest.

    runs: (stages x runs of a stage,) int32: first column, and above START_BITS a bit for each panel that has the run
    (0: no run). tiles: (tiles, run / 16, rows / 16, 32, 8) float16, one for each run and panel that has it, as
    `mma_half` of tensor.cuh wants A.
    """

    groups: np.ndarray
    runs: np.ndarray
    tiles: np.ndarray


def panel_groups(weight: np.ndarray, rows: int, run: int, together: int, per_stage: int) -> PanelGroups:
    """Pack an (m, k) float32 weight, k up to 2 ** START_BITS: panels of `rows` rows, `together` of a group; runs of
    `run` (a multiple of 16) columns, `per_stage` of a stage.

    Raises OverflowError for weights beyond float16.
    """
    m, k = weight.shape
    halves = to_halves(weight)
    mask = runs_of(weight != 0, rows, run)
    order = similar_groups(mask, together)
    members = np.where((order >= 0)[:, :, None], mask[order], False)
    stages = -(-members.any(axis=1).sum(axis=1) // per_stage)
    longest = np.argsort(-stages, kind="stable")
    order, members, stages = order[longest], members[longest], stages[longest]

    group, number = np.nonzero(members.any(axis=1))
    counts = np.bincount(group, minlength=len(order))
    firsts = (np.cumsum(stages) - stages) * per_stage
    place = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(firsts, counts)
    bits = (members.astype(np.int32) << np.arange(together)[:, None]).sum(axis=1)
    runs = np.zeros(int(stages.sum()) * per_stage, np.int32)
    runs[place] = number * run | bits[group, number] << START_BITS

    group, number, panel = np.nonzero(members.swapaxes(1, 2))
    padded = np.zeros((mask.shape[0] * rows, mask.shape[1] * run), np.float16)
    padded[:m, :k] = halves
    values = padded.reshape(mask.shape[0], rows, mask.shape[1], run)[order[group, panel], :, number]
    tiles = in_fragments(values.reshape(-1, rows, run // STEP, STEP).swapaxes(1, 2))
    of_group = np.bincount(group, minlength=len(order))
    heads = np.full((len(order), HEAD + together), 0, np.int32)
    heads[:, 0], heads[:, 1], heads[:, 2] = firsts, stages, np.cumsum(of_group) - of_group
    heads[:, HEAD:] = np.where(order >= 0, order * rows, m)
    return PanelGroups(heads, runs, tiles)


def similar_groups(mask: np.ndarray, together: int) -> np.ndarray:
    """(groups, together) panels, -1 where there is none, of a boolean (panels, runs) mask: to the longest panel that is
    left come those of whose runs the largest share is in the group already. Of random blocks that leaves 85 % of the
    reads with two panels and 72 % with four, and groups of like lengths."""
    lengths = mask.sum(axis=1)
    left = np.argsort(-lengths, kind="stable")
    order = np.full((-(-len(mask) // together), together), -1)
    if together == 1:
        return left[:, None]
    numbers = mask.astype(np.float32)
    for group in order:
        union = np.zeros(mask.shape[1], bool)
        for place in range(min(together, len(left))):
            shares = numbers[left] @ union / np.maximum(lengths[left], 1)
            chosen = int(np.argmax(shares))
            group[place] = left[chosen]
            union |= mask[left[chosen]]
            left = np.delete(left, chosen)
    return order
