"""Weights for Hopper's tensor cores (`wgmma`): panels of rows, each with the runs of columns that any of its rows has.

A panel is dense in its runs, so zeros inside of it are stored and multiplied (formats/panel_steps.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.formats.panel_steps import STEP, runs_of, to_halves

TILE_ROWS = 64  # of an instruction


@dataclass(frozen=True)
class WgmmaPanels:
    """heads: (panels, 4) int32: first row, first step, steps, 0; from the most steps to the fewest.

    starts: (steps,) int32 first columns. tiles: (steps, rows / 64, run / 16, 2, 64, 8) float16: of 64 rows and 16
    columns, as `wgmma_weight` of wgmma.cuh wants them, the first 8 columns of all rows and then the others.
    """

    heads: np.ndarray
    starts: np.ndarray
    tiles: np.ndarray


def wgmma_panels(weight: np.ndarray, rows: int, run: int, every: bool = False) -> WgmmaPanels:
    """Pack an (m, k) float32 weight: panels of `rows` rows (a multiple of 64), runs of `run` (of 16) columns. every:
    panels have all columns.

    Raises OverflowError for weights beyond float16.
    """
    m, k = weight.shape
    halves = to_halves(weight)
    runs = runs_of(np.ones(weight.shape, bool) if every else weight != 0, rows, run)
    steps = runs.sum(axis=1)
    order = np.argsort(-steps, kind="stable")
    panel, number = np.nonzero(runs[order])
    heads = np.zeros((len(order), 4), np.int32)
    heads[:, 0], heads[:, 2] = order * rows, steps[order]
    heads[:, 1] = np.cumsum(heads[:, 2]) - heads[:, 2]
    padded = np.zeros((runs.shape[0] * rows, runs.shape[1] * run), np.float16)
    padded[:m, :k] = halves
    values = padded.reshape(runs.shape[0], rows, runs.shape[1], run)[order[panel], :, number]
    split = values.reshape(len(values), rows // TILE_ROWS, TILE_ROWS, run // STEP, 2, 8)
    tiles = np.ascontiguousarray(split.transpose(0, 1, 3, 4, 2, 5))
    return WgmmaPanels(heads, (number * run).astype(np.int32), tiles)
