"""SpMM and sparse convolution with pattern and weights in code: straight-line FMAs with immediates, many positions.

    block: `groups` groups of `rows` rows x `threads` * `v` positions, one thread a run of v positions:
        for column that any row of the group uses: x = X[column] once; for row that uses it: sum[row] += immediate * x

Requires: layouts that `supports_flat`, few non-zeros (compiling takes about half a millisecond each). `stage` > 0 (X
through shared memory, cp.async) requires taps that are one row apart. Values are in the code: layers of equal patterns
do not share a kernel (`meta["code"]` tells them apart).

An FMA costs 28 to 30 bytes of instructions at 90 % and nothing else, so what bounds it is fetching instructions: it
pays where blocks with many positions run the same few instructions, which then stay in the instruction cache (128 KB).
Large blocks do best: to start one costs as much as 50 instructions, and warps of a group share what is fetched.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.cuda.epilogue import bias_array, epilogue_defines
from sparsetvm.schedules.cuda.geometry import flat_geometry, supports_flat
from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.formats.cuda_code import CodeShape, cuda_code
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

_MOST = 60_000  # non-zeros: with more it lost everywhere that it was measured, and compiles for minutes
_FEWEST_POSITIONS = 256  # with fewer the same code is fetched too often for what it does
_QUICK = 4_000  # non-zeros that compile in about two seconds
# Cycles on an H200, fitted to 156 times of 7 layers: to launch and to read the first code and X, to start a block, to
# issue an instruction for a warp (there are four schedulers), and to wait for what an instruction needs.
_START, _BLOCK, _ISSUE, _WAIT = 2440, 130, 0.28, 2.7
_LIKELY_GROUPS = 2  # more were measured too seldom to be anybody's default
_STAGES = 3
_IN_FLIGHT = 24  # floats of X that a thread reads ahead


class SpmmCode(Template):
    """Template cuda.spmm_code."""

    name = "cuda.spmm_code"
    version = 3

    def matches(self, workload: Workload, target: Target) -> bool:
        if target.kind != "cuda" or workload.pattern.kind == "dense" or not supports_flat(workload):
            return False
        return 0 < workload.nnz <= _MOST and flat_geometry(workload).positions >= _FEWEST_POSITIONS

    def preferred(self, workload: Workload, target: Target) -> bool:
        """A default should compile fast."""
        return self.quick(workload)

    def quick(self, workload: Workload) -> bool:
        return workload.nnz <= _QUICK

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(
            self.name,
            (
                # Measured on an H200: fewer rows, more groups or longer runs of positions are never near the best.
                *(Ordered("rows", (8, 16, 32)), Ordered("groups", (1, 2, 4)), Ordered("threads", (32, 64, 128))),
                *(Ordered("v", (1, 2)), Ordered("stage", (0, 16, 32))),
            ),
        )

    def default(self, workload: Workload, target: Target) -> Config:
        """The fastest config by a coarse model: 9 % slower than the fastest measured, on 8 layers."""
        return next(c for c in candidates(workload, target) if c.int("groups") <= _LIKELY_GROUPS)

    def estimate(self, workload: Workload, config: Config, target: Target) -> float:
        """Within 27 % of what was measured (rms)."""
        return _START + _cost(_shape(config, workload), workload, target)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        g, shape = flat_geometry(workload), _shape(config, workload)
        text, blocks = cuda_code(weight, bias_array(bias, workload.m), shape, g)
        return Packed((), {"text": text, "blocks": blocks, "code": hashlib.sha256(text.encode()).hexdigest()[:16]})

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Any:
        g, shape = flat_geometry(workload), _shape(config, workload)
        stages = 4 * _STAGES * shape.stage * shape.columns
        return Launch(
            f"spmm_code_{packed.meta['code']}.cu",
            "spmm_code",
            (("SP_V", shape.v), *epilogue_defines(workload.epilogue)),
            (-(-g.positions // shape.columns) * g.batch, packed.meta["blocks"], 1),
            shape.block,
            stages,
            text=packed.meta["text"],
            overlaps=True,
        )


def _shape(config: Config, workload: Workload) -> CodeShape:
    """The shape of a config as far as the layer allows.

    Taps off 16 bytes are read one float at a time and where they lie. A thread has at most 64 sums; a block at most 512
    threads, 1024 when they need few registers, so that the code need not spill.
    """
    g = flat_geometry(workload)
    aligned = g.x_row != 0 and len(g.taps) == 1
    v = config.int("v") if aligned else 1
    rows, threads = min(config.int("rows"), 64 // v), config.int("threads")
    stage = min(config.int("stage"), -(-workload.k // 16) * 16) if aligned else 0
    most = 1024 if stage and rows * v <= 16 else 512
    groups = min(config.int("groups"), most // threads, -(-workload.m // rows))
    stage = min(stage, (192 << 10) // (4 * _STAGES * threads * v) // 16 * 16)
    return CodeShape(rows, groups, threads, v, stage, _STAGES, max(4, _IN_FLIGHT // v))


def candidates(workload: Workload, target: Target) -> list[Config]:
    """Configs worth timing, the likeliest first."""
    found: list[tuple[float, int, Config]] = []
    for config in SpmmCode().space(workload, target):
        shape = _shape(config, workload)
        names = {"rows": shape.rows, "groups": shape.groups, "v": shape.v, "stage": shape.stage}
        whole = all(config[name] == value for name, value in names.items())
        if whole and (shape.groups > 1 or not shape.stage):  # a group alone gains nothing from shared memory
            found.append((_cost(shape, workload, target), len(found), config))
    return [config for _, _, config in sorted(found)]


def _cost(shape: CodeShape, workload: Workload, target: Target) -> float:
    """Estimated cycles after the start, of the multiprocessor with the most blocks. The last factor is measured."""
    g, density = flat_geometry(workload), workload.pattern.density
    fmas = workload.k * density * shape.rows * shape.v
    loads = workload.k * (1 - (1 - density) ** shape.rows)
    instructions = fmas + 2 * loads + 4 * shape.rows * shape.v
    blocks = -(-g.positions // shape.columns) * g.batch * -(-workload.m // (shape.rows * shape.groups))
    most = -(-blocks // max(target.sms, 1))
    each = _ISSUE * most * shape.block / 32 + _WAIT
    return _BLOCK * most + instructions * each * (1.2 if shape.v > 1 else 1.0)
