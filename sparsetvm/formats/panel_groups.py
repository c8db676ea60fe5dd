"""Weights for tensor cores: groups of panels of rows that have columns in common, so that X is read once for a group.

A panel is dense in its runs of columns, so zeros inside of it are stored and multiplied (formats/panel_steps.py).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from sparsetvm.formats.panel_steps import STEP, in_fragments, runs_of, to_halves

START_BITS = 24  # of a run: where it begins
HEAD, MOST = 4, 4  # numbers of a group before the rows of its panels; panels of a group at most


@dataclass(frozen=True)
class PanelGroups:
    """groups: (groups, HEAD + MOST) int32: first run, stages, first piece, 0, first rows of the panels (m where there is
    none). counts: (groups,) pieces.

    runs: (stages x runs of a stage,) int32: first column, and above START_BITS a bit for each panel that has the run (0:
    no run). pieces: (pieces, run / 16, rows / 16, 32, 8) float16, one for each run and panel that has it, as `mma_half`
    of tensor.cuh wants A.
    """

    groups: np.ndarray
    counts: np.ndarray
    runs: np.ndarray
    pieces: np.ndarray


def panel_groups(weight: np.ndarray, rows: int, run: int, together: int, per_stage: int) -> PanelGroups:
    """Pack an (m, k) float32 weight, k up to 2 ** START_BITS: panels of `rows` rows, `together` of a group; runs of `run`
    (a multiple of 16) columns, `per_stage` of a stage.

    Raises OverflowError for weights beyond float16.
    """
    m, k = weight.shape
    halves = to_halves(weight)
    mask = runs_of(weight != 0, rows, run)
    order = similar_groups(mask, together)
    members = np.where((order >= 0)[:, :, None], mask[order], False)
    stages = np.maximum(1, -(-members.any(axis=1).sum(axis=1) // per_stage))

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
    pieces = in_fragments(values.reshape(-1, rows, run // STEP, STEP).swapaxes(1, 2))
    of_group = np.bincount(group, minlength=len(order))
    heads = np.full((len(order), HEAD + MOST), m, np.int32)
    heads[:, 0], heads[:, 1], heads[:, 2], heads[:, 3] = firsts, stages, np.cumsum(of_group) - of_group, 0
    heads[:, HEAD : HEAD + together] = np.where(order >= 0, order * rows, m)
    return PanelGroups(heads, of_group, runs, pieces)


def dealt_tiles(groups: np.ndarray, costs: np.ndarray, positions: int, wide: int, lists: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiles, groups at `wide` positions each, dealt to `lists` lists with costs as equal as may be: from the costliest on
    each to the list that has least (Graham, 1969).

    groups: (groups, HEAD + MOST); costs: (groups,) of one tile. Returns (lists + 1,) int32, where lists begin, and the
    tiles list after list: a group's numbers with the first position as number 3.
    """
    across = -(-positions // wide)
    heap = [(0.0, number) for number in range(lists)]
    taken: list[list[tuple[int, int]]] = [[] for _ in range(lists)]
    for group in np.argsort(-costs, kind="stable"):
        for column in range(across):
            cost, number = heap[0]
            taken[number].append((int(group), column))
            heapq.heapreplace(heap, (cost + float(costs[group]), number))
    starts = np.concatenate([[0], np.cumsum([len(of_list) for of_list in taken])]).astype(np.int32)
    flat = np.array([tile for of_list in taken for tile in of_list], np.int64)
    tiles = groups[flat[:, 0]]
    tiles[:, 3] = flat[:, 1] * wide
    return starts, tiles


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
