"""How long cuda.spmm_data takes with a config, in clocks: picks the default config and ranks candidates.

Per SM and clock one 128-byte wavefront of shared memory and about 48 bytes from L2; a warp waits for X about
_BATCH_LATENCY clocks a batch. Constants are fitted to measurements of prototypes on an H200.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from sparsetvm.schedules.cuda.geometry import flat_geometry
from sparsetvm.schedules.cuda.windows import Windows, windows

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.space import Space

_L2_BYTES = 48.0  # per SM and clock
_BATCH_LATENCY = 40.0
_CHUNK_LATENCY = 350.0  # barrier, first reads of a chunk
_START_LATENCY = 1500.0  # first copies from L2, output
_CLUSTER_LATENCY = 1500.0
_UNEVEN = 1.12  # slowest warp over the mean
_SM_SHARED = 228 << 10
_RESERVED = 1 << 10  # shared memory that the system takes from each block


def rank(workload: Workload, space: Space, target: Target) -> list[tuple[float, Config]]:
    """(estimated clocks, config) of all configs that fit, best first. Two batches of entries; 4 stages only if used."""
    geometry = flat_geometry(workload)
    knobs = {knob.name: knob.values for knob in space.knobs}
    found = []
    views = {nt: windows(workload, geometry, int(nt)) for nt in knobs["nt"]}
    for config in Space(space.template, tuple(k for k in space.knobs if k.name not in ("stages", "batch"))):
        nt, c = config.int("nt"), config.int("c")
        view = views[nt]
        if view.aligned and c < nt // 32:
            continue
        depth = view.rows // view.phases
        chunk = min(config.int("chunk"), -(-depth // config.int("parts")))
        chunks = _ceil(_ceil(depth, chunk), config.int("parts"))
        for stages in {2, min(max(chunks, 2), 4)}:
            for batch in knobs["batch"]:
                full = config.replace(stages=stages, batch=batch)
                clocks = estimate(workload, full, view, target, geometry.positions, geometry.batch)
                if clocks < math.inf:
                    found.append((clocks, full))
    return sorted(found, key=lambda item: item[0])


def best_config(workload: Workload, space: Space, target: Target) -> Config:
    """The config with the smallest estimate."""
    return rank(workload, space, target)[0][1]


def estimate(workload: Workload, config: Config, view: Windows, target: Target, positions: int, images: int) -> float:
    """Clocks of a launch; infinity when a block's shared memory does not fit."""
    nt, warps, rows, parts = (config.int(name) for name in ("nt", "warps", "rows", "parts"))
    c = max(config.int("c"), nt // 32) if view.aligned else nt // 32
    groups = 1 if workload.conv is None else workload.conv.groups
    lane_groups = 32 * c // nt
    unit = lane_groups * config.int("batch")
    tile_rows, depth = warps * rows, view.rows // view.phases
    tiles = groups * -(-(workload.m // groups) // tile_rows)
    blocks = tiles * images * -(-positions // nt) * parts
    chunk = min(config.int("chunk"), -(-depth // parts))
    chunks = _ceil(_ceil(depth, chunk), parts)

    entries = tile_rows * _padded(workload.pattern.density * chunk * view.columns, unit)  # of a chunk
    meta_bytes = 8 * entries * 1.15 + 8 * tile_rows
    x_bytes = chunk * view.phases * view.length * 4
    shared = min(config.int("stages"), chunks) * (x_bytes + meta_bytes) + 8 * tile_rows
    if shared > target.shared:
        return math.inf
    per_sm = -(-blocks // target.sms)
    threads = max(1, (16 if rows * c > 8 else 32) // warps)
    resident = min(per_sm, threads, int(_SM_SHARED // (shared + _RESERVED)))
    wavefronts = entries * (nt / 32 + 0.5 / lane_groups) + (x_bytes + meta_bytes) / 128
    copied = (x_bytes + meta_bytes) / _L2_BYTES
    latency = entries / (warps * unit) * _BATCH_LATENCY * _UNEVEN + _CHUNK_LATENCY
    work = chunks * max(resident * wavefronts * _UNEVEN, resident * copied, latency)
    once = _START_LATENCY + resident * copied + (_CLUSTER_LATENCY if parts > 1 else 0.0)
    return -(-per_sm // resident) * (work + once)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


@functools.lru_cache(4096)
def _padded(mean: float, unit: int) -> float:
    """Expected entries of a row in a chunk: a Poisson count rounded up to a multiple of `unit`."""
    if mean <= 0:
        return 0.0
    most = int(mean + 8 * math.sqrt(mean) + 8)
    counts = np.arange(most + 1)
    logs = counts * math.log(mean) - mean - np.cumsum(np.log(np.maximum(counts, 1)))
    return float((np.exp(logs) * (-(-counts // unit) * unit)).sum())
