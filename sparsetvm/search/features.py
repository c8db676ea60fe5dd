"""What the cost model sees of a (workload, config) pair: named numbers; a name that is absent counts as missing.

Knobs enter by name, so that templates may share a knob's meaning ("k_block") or have their own, and records of other
spaces still train the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from sparsetvm.core.config import Config, KnobValue
from sparsetvm.core.layout import Planes, PlaneTiles, Tiled
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.schedules.base import template_names

_FLOAT = 4
# Machine code per non-zero when the pattern is compiled in: one FMA with a memory broadcast and its share of loads.
_CODE_BYTES = 8
_K_BLOCK = ("k_block", "kb")
_ROW_TILE = ("rows", "mr", "row_tile")
_TILES = ("nr", "tiles", "n_tile")


def features(workload: Workload, config: Config, target: Target) -> dict[str, float]:
    """All features of one pair."""
    return {**workload_features(workload, target), **config_features(workload, config, target)}


def workload_features(workload: Workload, target: Target) -> dict[str, float]:
    """Shapes (log2), pattern, layouts, epilogue and target."""
    pattern, epilogue, conv = workload.pattern, workload.epilogue, workload.conv
    found = {
        "m": _log(workload.m),
        "k": _log(workload.k),
        "n": _log(workload.n),
        "flops": _log(workload.dense_flops),
        "density": pattern.density,
        "log_density": math.log2(max(pattern.density, 1e-6)),
        "row_nnz": _log(pattern.density * workload.k),
        "imbalance": pattern.row_imbalance,
        "empty_rows": pattern.empty_rows / max(workload.m, 1),
        "block_rows": float(pattern.block[0]),
        "block_columns": float(pattern.block[1]),
        f"pattern:{pattern.kind}": 1.0,
        "residual": float(epilogue.residual),
        "transcendental": float(epilogue.activation not in ("none", "relu", "clip")),
        "lanes": float(_lanes(workload, target)),
        "threads": float(workload.threads),
        "l1": _log(target.l1),
        "l2": _log(target.l2),
        "weights_per_l2": workload.nnz * _FLOAT / target.l2,
        "x_per_l2": workload.k * workload.n * _FLOAT / target.l2,
        "conv": float(conv is not None),
    }
    if conv is not None:
        found["taps"] = float(conv.kernel[0] * conv.kernel[1])
        found["stride"] = float(conv.stride[0])
        found["groups"] = _log(conv.groups)
    return found


def config_features(workload: Workload, config: Config, target: Target) -> dict[str, float]:
    """The template, its knobs, and what they mean for caches, code and tails."""
    found: dict[str, float] = {f"template:{name}": float(name == config.template) for name in template_names()}
    for name, value in config.knobs:
        if isinstance(value, str):
            found[f"{name}={value}"] = 1.0
        else:
            found[name] = math.log2(1 + value) if value >= 0 else float(value)
    knobs = dict(config.knobs)
    lanes = _lanes(workload, target)
    k_block = _first(knobs, _K_BLOCK)
    rows = _first(knobs, _ROW_TILE)
    tiles = _first(knobs, _TILES) or 1
    positions = math.ceil(workload.n / lanes)
    found["tile_tail"] = math.ceil(positions / tiles) * tiles / max(positions, 1)
    if k_block:
        found["x_block_per_l1"] = k_block * tiles * lanes * _FLOAT / target.l1
        found["k_blocks"] = math.ceil(workload.k / k_block)
        found["block_nnz"] = workload.pattern.density * k_block
    if rows:
        found["row_tail"] = math.ceil(workload.m / rows) * rows / workload.m
        found["accumulators"] = rows * tiles / target.registers
    if rows and k_block:
        piece = workload.pattern.density * rows * k_block * (_first(knobs, ("groups",)) or 1) * _CODE_BYTES
        found["piece_per_l2"] = piece / target.l2
        found["piece"] = _log(piece)
    return found


def feature_matrix(rows: Sequence[dict[str, float]], names: Sequence[str]) -> np.ndarray:
    """(len(rows), len(names)) float32; NaN where a row lacks a name."""
    column = {name: at for at, name in enumerate(names)}
    matrix = np.full((len(rows), len(names)), np.nan, np.float32)
    for at, row in enumerate(rows):
        for name, value in row.items():
            if name in column:
                matrix[at, column[name]] = value
    return matrix


def feature_names(rows: Iterable[dict[str, float]]) -> list[str]:
    """All names that occur, sorted."""
    return sorted(set().union(*rows))


def _first(knobs: dict[str, KnobValue], names: tuple[str, ...]) -> int:
    """The first integer knob of these names, 0 when there is none."""
    return next((v for name in names if isinstance(v := knobs.get(name), int)), 0)


def _lanes(workload: Workload, target: Target) -> int:
    layout = workload.layout_out
    return layout.lanes if isinstance(layout, Tiled | Planes | PlaneTiles) else target.lanes


def _log(value: float) -> float:
    return math.log2(1 + max(value, 0.0))
