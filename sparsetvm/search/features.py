"""What the cost model sees of (workload, config) pairs: named columns of numbers, NaN where a name does not apply.

Knobs enter by name, so that templates may share a knob's meaning ("k_block") or have their own, and records of other
spaces still train the model. Beside the raw values stand what they mean for registers, loads, code, caches and tails.
All configs of a space are described at once: a ranking of thousands of configs must cost less than one measurement.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from sparsetvm.core.config import Config
from sparsetvm.core.layout import BatchTiles, Planes, PlaneTiles, Tiled
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload

Columns = dict[str, np.ndarray]

_FLOAT = 4
# Machine code per non-zero when the pattern is compiled in: one FMA with a memory broadcast and its share of loads.
_CODE_BYTES = 8
# Names that templates use for one thing: columns of a K block, rows and vectors of a register tile, tiles of a block.
_K_BLOCK, _ROWS, _VECTORS, _TILES = ("k_block", "kb"), ("rows", "mr", "row_tile"), ("nr", "n_tile"), ("tiles",)


def features(workload: Workload, configs: Sequence[Config], target: Target) -> Columns:
    """All features of one workload with each of the configs: float32 columns of len(configs)."""
    found = {
        name: np.full(len(configs), value, np.float32) for name, value in workload_features(workload, target).items()
    }
    found.update(config_features(workload, configs, target))
    return found


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
        "cold": float(workload.cold),
        "l1": _log(target.l1),
        "l2": _log(target.l2),
        "weights_per_l2": workload.nnz * _FLOAT / target.l2,
        "x_per_l2": workload.k * workload.n * _FLOAT / target.l2,
        "conv": float(conv is not None),
        "active": workload.active,
    }
    if conv is not None:
        found["taps"] = float(conv.kernel[0] * conv.kernel[1])
        found["stride"] = float(conv.stride[0])
        found["channel_groups"] = _log(conv.groups)
    return found


def config_features(workload: Workload, configs: Sequence[Config], target: Target) -> Columns:
    """The template, its knobs, and what they mean for the kernel."""
    members: defaultdict[str, list[int]] = defaultdict(list)
    for at, config in enumerate(configs):
        members[config.template].append(at)
    found: Columns = {}
    for template, chosen in members.items():
        own = _template_features(workload, [configs[at] for at in chosen], target)
        own[f"template:{template}"] = np.ones(len(chosen))
        for name, values in own.items():
            found.setdefault(name, np.full(len(configs), np.nan, np.float32))[chosen] = values
    return found


def feature_matrix(columns: Mapping[str, np.ndarray], names: Sequence[str], rows: int) -> np.ndarray:
    """(rows, len(names)) float32; NaN where a name is missing, or a record holds a knob beyond all sense."""
    matrix = np.full((rows, len(names)), np.nan, np.float32)
    with np.errstate(over="ignore"):
        for at, name in enumerate(names):
            if name in columns:
                matrix[:, at] = columns[name]
    matrix[np.isinf(matrix)] = np.nan
    return matrix


def _template_features(workload: Workload, configs: Sequence[Config], target: Target) -> Columns:
    """Features of configs of one template."""
    rows = [dict(config.knobs) for config in configs]
    found: Columns = {}
    knobs: Columns = {}
    for name in sorted(set().union(*rows)):
        values = [row.get(name, np.nan) for row in rows]
        if any(isinstance(value, str) for value in values):
            for value in sorted({str(value) for value in values}):
                found[f"{name}={value}"] = np.array([value == given for given in values], np.float32)
        else:
            knobs[name] = np.array(values, np.float64)
            with np.errstate(invalid="ignore"):
                found[name] = np.where(knobs[name] >= 0, np.log2(1 + np.abs(knobs[name])), knobs[name])
    with np.errstate(all="ignore"):  # a record may hold a knob of zero or less
        found.update(_meaning(workload, knobs, target))
    return found


def _meaning(workload: Workload, knobs: Columns, target: Target) -> Columns:
    """What knobs that are known by name mean for registers, loads, code, caches and tails."""
    found: Columns = {}
    lanes, density = _lanes(workload, target), workload.pattern.density
    total_tiles = math.ceil(workload.n / lanes)
    k_block, rows = _first(knobs, _K_BLOCK), _first(knobs, _ROWS)
    vectors, tiles = _first(knobs, _VECTORS), _first(knobs, _TILES)
    if vectors is not None:
        found["vector_tail"] = _tail(total_tiles, vectors)
    if tiles is not None:
        found["tile_tail"] = _tail(total_tiles, tiles)
        found["tile_share"] = tiles / total_tiles
        found["tile_block_per_l2"] = tiles * lanes * workload.k * _FLOAT / target.l2
    if rows is not None:
        found["row_tail"] = _tail(workload.m, rows)
        found["accumulators"] = rows * (1 if vectors is None else vectors) / target.registers
        # A load of X serves the non-zeros that the rows of a group have in that column.
        found["fmas_per_load"] = rows * density / (1 - (1 - min(density, 0.999999)) ** rows)
    if k_block is not None:
        width = lanes * (1 if vectors is None else vectors)
        found["k_share"] = np.minimum(k_block / workload.k, 1.0)
        found["k_blocks"] = np.ceil(workload.k / k_block)
        found["x_block_per_l1"] = k_block * width * _FLOAT / target.l1
        found["row_block_nnz"] = density * k_block
        # Sums are loaded and stored once per K block.
        found["sums_per_fma"] = 2 * found["k_blocks"] * workload.m / max(workload.nnz, 1)
    if rows is not None and k_block is not None:
        groups = knobs.get("groups", np.ones_like(rows))
        piece_rows = np.minimum(rows * groups, workload.m)
        piece = density * piece_rows * np.minimum(k_block, workload.k) * _CODE_BYTES
        found["piece_share"] = piece_rows / workload.m
        found["piece"] = np.log2(1 + piece)
        found["piece_per_l2"] = piece / target.l2
        found["code_and_block_per_l2"] = piece / target.l2 + found.get("tile_block_per_l2", np.zeros_like(rows))
    return found


def _first(knobs: Mapping[str, np.ndarray], names: Collection[str]) -> np.ndarray | None:
    """The first knob of these names, None when there is none."""
    return next((knobs[name] for name in names if name in knobs), None)


def _tail(size: int, step: np.ndarray) -> np.ndarray:
    """Work with a last step that is done in full, relative to the work."""
    tail: np.ndarray = np.ceil(size / step) * step / max(size, 1)
    return tail


def _lanes(workload: Workload, target: Target) -> int:
    layout = workload.layout_out
    return layout.lanes if isinstance(layout, Tiled | Planes | PlaneTiles | BatchTiles) else target.lanes


def _log(value: float) -> float:
    return math.log2(1 + max(value, 0.0))
