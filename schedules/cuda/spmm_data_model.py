"""How long cuda.spmm_data takes with a config, in clocks: picks the default config and ranks candidates.

What a chunk keeps busy (shared memory, instruction issue, copies from L2, a warp's chain of reads) overlaps partly: the
terms are added as a norm between sum and maximum. Clusters find fewer multiprocessors than single blocks, since one
lies in one GPC: a grid that just fills the GPU takes twice as long in clusters of 4 or 8 when an SM holds one block.
A kernel whose block has all of K in one chunk does a warp's rows strictly one after the other; the other one has them
all in flight.

The shape is fitted to 673 measurements of 39 layers on an H200 before kernels overlapped, what is copied and what a
launch takes to 388 of 18 since blocks of a cluster send their sums (16 to 1024 positions, 512 to 4096 squared, three
3x3 convolutions). Of the latter the config with the smallest estimate is slower than the fastest measured by 3 % in the
median of products and 43 % at worst (512 x 512 with 32 positions), by 25 to 30 % of the convolutions, whose estimates
mostly cannot tell tiles apart; estimates of configs near the best are off by 10 % (rms), in the fit itself.
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

_SM_BYTES, _L2_BYTES = 100.0, 5200.0  # a clock, into a multiprocessor and out of L2
_OUTPUT_BYTES = 18.3  # the same of outputs
_BATCH_LATENCY = 10.0
_ROW_LATENCY = 140.0
_SINGLE_ROW_LATENCY = 765.0  # the same where K is one chunk: look-up, sum over lanes and output are in the loop
_CHUNK_LATENCY = 1230.0  # barrier, first reads of a chunk
_COPY_LATENCY = 13.6  # a warp's copy of 512 bytes of X
_WINDOW_LATENCY = 900.0  # a warp's copy of up to 128 floats of a window
_START_LATENCY = 2070.0  # first copies from L2, behind a kernel that is about to end
_CLUSTER_LATENCY = 490.0
_UNEVEN = 1.07  # slowest warp over the mean
_ISSUE = 2.0  # clocks of a scheduler for an instruction of the inner loop
_NORM = 2.4
_ALIKE = 1.04
CLUSTERED = {4: 0.91, 8: 0.85}  # share of multiprocessors that clusters of so many blocks can use
_SM_SHARED = 228 << 10
_SM_REGISTERS = 64 << 10
_RESERVED = 1 << 10  # shared memory that the system takes from each block


def rank(workload: Workload, space: Space, target: Target) -> list[tuple[float, Config]]:
    """(estimated clocks, config) of all configs that fit, best first. Of configs that mean the same only one."""
    geometry = flat_geometry(workload)
    views: dict[int, Windows] = {}
    found: dict[tuple[object, ...], tuple[float, Config]] = {}
    for config in space:
        nt, c, parts = config.int("nt"), config.int("c"), config.int("parts")
        if c < nt // 32:  # the same as nt // 32
            continue
        if nt not in views:
            views[nt] = windows(workload, geometry, nt)
        view = views[nt]
        chunk = min(config.int("chunk"), -(-(view.rows // view.phases) // parts))
        others = (config[name] for name in ("rows", "warps", "parts", "stages", "batch"))
        meaning = (nt, c, chunk, *others)
        if meaning not in found:
            clocks = estimate(workload, config, view, target, geometry.positions, geometry.batch)
            found[meaning] = (clocks, config)
    return sorted((item for item in found.values() if item[0] < math.inf), key=lambda item: item[0])


def best_config(workload: Workload, space: Space, target: Target) -> Config:
    """The config with the smallest estimate; of those within 4 % of it that with the fewest positions and chunks.

    In all products measured since kernels overlap those of 32 positions were fastest (more were hardly tried), and K in
    one chunk was never slower than in two by more than the model can tell. The rule was chosen with them in view.
    """
    ranked = rank(workload, space, target)
    alike = [item for item in ranked if item[0] <= _ALIKE * ranked[0][0]]
    return min(alike, key=lambda item: (item[1].int("nt"), -item[1].int("chunk") * item[1].int("parts"), item[0]))[1]


def estimate(workload: Workload, config: Config, view: Windows, target: Target, positions: int, images: int) -> float:
    """Clocks of a launch; infinity when a block's shared memory does not fit."""
    nt, warps, rows, parts = (config.int(name) for name in ("nt", "warps", "rows", "parts"))
    batch = config.int("batch")
    c = max(config.int("c"), nt // 32) if view.aligned else nt // 32
    groups = 1 if workload.conv is None else workload.conv.groups
    lane_groups = 32 * c // nt
    unit = lane_groups * batch
    tile_rows, depth = warps * rows, view.rows // view.phases
    tiles = groups * -(-(workload.m // groups) // tile_rows)
    blocks = tiles * images * -(-positions // nt) * parts
    chunk = min(config.int("chunk"), -(-depth // parts))
    whole = -(-depth // chunk)
    chunks = -(-whole // parts)  # of one part

    # Step 1. What a chunk is: entries, bytes; how many blocks an SM holds.
    row_entries = _padded(workload.pattern.density * chunk * view.columns, unit)
    entries = tile_rows * row_entries
    x_bytes = chunk * view.phases * view.length * 4
    copied = x_bytes + 8 * entries * 1.15 + 8 * tile_rows
    partial = tile_rows * nt * 4 * (parts > 1)
    shared = min(config.int("stages"), chunks) * copied + 8 * tile_rows + partial
    if shared > target.shared:
        return math.inf
    registers = 48 if chunks == 1 else 56 + rows * c
    sms = max(1, int(target.sms * CLUSTERED.get(parts, 1.0)))
    per_sm = -(-blocks // sms)
    fit = min(_SM_REGISTERS // (registers * 32 * warps), int(_SM_SHARED // (shared + _RESERVED)))
    resident = max(1, min(per_sm, fit))

    # Step 2. What it costs.
    wavefronts = resident * (entries * (nt / 32 + 0.5 / lane_groups) * _UNEVEN + copied / 128)
    instructions = batch * (c + (1 if view.aligned else c) + 1.5) + 2  # of a batch
    issue = resident * entries / unit * instructions / 4 * _ISSUE
    traffic = copied * max(resident / _SM_BYTES, min(blocks, sms * resident) / _L2_BYTES)
    if view.aligned:
        copies = x_bytes / 512 / warps * _COPY_LATENCY
    else:
        copies = chunk * view.phases * -(-view.length // 128) / warps * _WINDOW_LATENCY
    row_latency = _SINGLE_ROW_LATENCY if chunks == 1 else _ROW_LATENCY
    latency = _CHUNK_LATENCY + rows * (row_entries / unit * _BATCH_LATENCY + row_latency) + copies
    step = float(sum(term**_NORM for term in (wavefronts, issue, traffic, latency)) ** (1 / _NORM))
    once = _START_LATENCY + _CLUSTER_LATENCY * (parts > 1) + resident * tile_rows * nt * 4 / _OUTPUT_BYTES
    return -(-per_sm // resident) * (chunks * step + once)


@functools.lru_cache(4096)
def _padded(mean: float, unit: int) -> float:
    """Expected entries of a row in a chunk: a Poisson count rounded up to a multiple of `unit`."""
    if mean <= 0:
        return 0.0
    most = int(mean + 8 * math.sqrt(mean) + 8)
    counts = np.arange(most + 1)
    logs = counts * math.log(mean) - mean - np.cumsum(np.log(np.maximum(counts, 1)))
    return float((np.exp(logs) * (-(-counts // unit) * unit)).sum())
