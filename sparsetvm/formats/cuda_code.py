"""CUDA C++ in which the non-zeros of a weight matrix are instructions: one FMA with the weight as its immediate.

Every group of rows is one function; a thread holds a sum per row and reads a value of X once for all rows of the group
that use it (SparseRT, Wang, PACT 2020, generates such code as PTX). Offsets of X, Y and the residual are constants as
well, so an address costs no instruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.formats.flat_geometry import FlatGeometry
from sparsetvm.formats.row_order import cluster_rows

_MANY_ROWS = 32


@dataclass(frozen=True)
class CodeShape:
    """rows of a group; groups of a block; threads a group has; v positions of a thread; stage: rows of X that go
    through shared memory at a time (0: X is read where it lies), stages in flight; ahead: reads of X ahead of their
    first use.
    """

    rows: int
    groups: int
    threads: int
    v: int
    stage: int
    stages: int
    ahead: int

    @property
    def columns(self) -> int:
        """Positions of a block."""
        return self.threads * self.v

    @property
    def block(self) -> int:
        return self.threads * self.groups


def deal_groups(weight: np.ndarray, shape: CodeShape, rows_per_group: int) -> list[np.ndarray]:
    """Row numbers of each group, `shape.groups` groups for each block (the last ones of a block may be empty).

    Rows of a group share columns (formats/row_order.py); blocks have about equal work.
    """
    found: list[np.ndarray] = []
    for first in range(0, len(weight), rows_per_group):
        order = cluster_rows(weight[first : first + rows_per_group] != 0, shape.rows) + first
        found += [order[at : at + shape.rows] for at in range(0, len(order), shape.rows)]
    work = np.array([np.count_nonzero(weight[rows]) + np.count_nonzero(weight[rows].any(0)) for rows in found])
    blocks = -(-len(found) // shape.groups)
    dealt = [np.empty(0, np.int64)] * (blocks * shape.groups)
    for place, group in enumerate(np.argsort(-work, kind="stable")):
        turn, block = divmod(place, blocks)
        dealt[(blocks - 1 - block if turn % 2 else block) * shape.groups + turn] = found[group]
    return dealt


def cuda_code(weight: np.ndarray, bias: np.ndarray, shape: CodeShape, at: FlatGeometry) -> tuple[str, int]:
    """(source of the kernel `spmm_code`, blocks along y of its grid) for the (m, k) weight and (m,) bias."""
    groups = deal_groups(weight, shape, at.rows_per_group)
    body = _staged if shape.stage else _direct
    parts = ['#include "spmm_code.cuh"']
    for number, rows in enumerate(groups):
        if rows.size or shape.stage:  # a group without rows still copies its share of X
            lines = [
                f"static __device__ __forceinline__ void group_{number}(SP_GROUP_PARAMETERS) {{",
                *(f"  sp::Vec a{i} = sp::splat({_float(bias[row])});" for i, row in enumerate(rows)),
                *body(rows, weight, shape, at),
                "}",
            ]
            parts.append("\n".join(lines))
    parts.append(_kernel(groups, shape, at))
    return "\n".join(parts), len(groups) // shape.groups


def _fmas(column: int, rows: np.ndarray, weight: np.ndarray) -> str:
    used = np.flatnonzero(weight[rows, column])
    return "  " + " ".join(f"sp::fma(a{i}, x{column}, {_float(weight[rows[i], column])});" for i in used)


def _stores(rows: np.ndarray, at: FlatGeometry) -> list[str]:
    return [f"sp::write(y + {r * at.y_row}, a{i}, real, SP_AT({r * at.r_row}));" for i, r in enumerate(rows)]


def _direct(rows: np.ndarray, weight: np.ndarray, shape: CodeShape, at: FlatGeometry) -> list[str]:
    """X is read where it lies, `ahead` columns before it is used.

    ptxas moves no read of X in front of a store, which could change it, and no store into the sums of other rows. So
    with many rows each is stored when its sum is complete (128 x 128 at 90 %, 32 rows, H200: 2.25 us, 2.94 with all
    stores at the end); with few it is the reads that must not wait (8 rows: 3.25 us and 2.96).
    """
    taps = at.taps[rows[0] // at.rows_per_group]
    columns = np.flatnonzero(weight[rows].any(0))
    batches = [columns[i : i + shape.ahead] for i in range(0, len(columns), shape.ahead)]
    complete: dict[int, list[int]] = {}  # column -> rows that have their last non-zero in it
    if shape.rows >= _MANY_ROWS:
        for i, row in enumerate(weight[rows]):
            if row.any():
                complete.setdefault(int(np.flatnonzero(row)[-1]), []).append(i)
    stores, lines = _stores(rows, at), list[str]()
    for batch, after in zip([columns[:0], *batches], [*batches, columns[:0]], strict=True):
        lines += [f"  const sp::Vec x{k} = sp::read(x + {taps[k]});" for k in after]
        for k in batch:
            lines += [_fmas(k, rows, weight), *(f"  if (inside) {stores[i]}" for i in complete.get(int(k), []))]
    stored = {i for those in complete.values() for i in those}
    return [*lines, *(f"  if (inside) {store}" for i, store in enumerate(stores) if i not in stored)]


def _staged(rows: np.ndarray, weight: np.ndarray, shape: CodeShape, at: FlatGeometry) -> list[str]:
    """X comes to shared memory `stage` rows at a time, by all threads of the block."""
    k, size = weight.shape[1], shape.stage * shape.columns
    count = -(-k // shape.stage)

    def fill(stage: int) -> str:
        if stage >= count:
            return "  sp::copy_commit();"
        first = stage * shape.stage
        sizes = f"{shape.stage}, {shape.columns}, {shape.block}"
        return (
            f"  sp::fill<{sizes}>(tile + {stage % shape.stages * size}, x + {first * at.x_row}, {at.x_row}, "
            f"{min(shape.stage, k - first)}, left);"
        )

    lines = [fill(stage) for stage in range(shape.stages - 1)]
    for stage in range(count):
        lines += [f"  sp::copy_wait<{shape.stages - 2}>();", "  __syncthreads();", fill(stage + shape.stages - 1)]
        for column in range(stage * shape.stage, min((stage + 1) * shape.stage, k)):
            if weight[rows, column].any():
                place = stage % shape.stages * size + (column - stage * shape.stage) * shape.columns
                lines.append(f"  const sp::Vec x{column} = sp::read_shared(mine + {place});")
                lines.append(_fmas(column, rows, weight))
    return [*lines, "  sp::copy_wait<0>();", *(f"  if (inside) {store}" for store in _stores(rows, at))]


def _kernel(groups: list[np.ndarray], shape: CodeShape, at: FlatGeometry) -> str:
    tiles = -(-at.positions // shape.columns)
    shared = "SP_DYNAMIC_SHARED(float, tile);" if shape.stage else "float* const tile = nullptr;"
    start = "p0" if shape.stage else f"min(p, {at.positions - shape.v})"
    cases = "\n".join(
        f"    case {i}: group_{i}(SP_GROUP_ARGUMENTS); break;"
        for i, rows in enumerate(groups)
        if rows.size or shape.stage
    )
    table, zeros = _borders(groups, shape, at) if any(at.border) else ("", "")
    return f"""{table}
extern "C" __global__ void __launch_bounds__({shape.block})
spmm_code(const float* __restrict__ x, SP_RESIDUAL_PARAMETER float* __restrict__ y) {{
  sp::start_next();
  {shared}
  const int group = blockIdx.y * {shape.groups} + threadIdx.x / {shape.threads};
  const int image = blockIdx.x / {tiles}, p0 = blockIdx.x % {tiles} * {shape.columns};
  const int column = threadIdx.x % {shape.threads} * {shape.v}, p = p0 + column, left = {at.positions} - p0;
  const float* const mine = tile + column;
  const unsigned real = sp::pixels(p, {at.valid}, {at.pitch}, {at.width});
  const bool inside = p < {at.positions};
  x += {at.x0} + image * {at.x_batch} + {start};
  y += {at.y0} + image * {at.y_batch} + p;
#if SP_RESIDUAL
  residual += {at.r0} + image * {at.r_batch} + p;
#endif
  x = sp::wait_for_previous(x);
#if SP_RESIDUAL
  residual = sp::wait_for_previous(residual);
#endif
  switch (group) {{
{cases}
  }}{zeros}
}}
"""


def _borders(groups: list[np.ndarray], shape: CodeShape, at: FlatGeometry) -> tuple[str, str]:
    """A table of the rows of all groups, and the lines that zero what surrounds an image.

    The blocks along the positions share the rows of a group: one alone takes longer for all of them than for its sums.
    """
    tiles = -(-at.positions // shape.columns)
    rows = np.full((len(groups), shape.rows), -1, np.int64)
    for number, group in enumerate(groups):
        rows[number, : group.size] = group
    table = f"static __device__ const int rows_of[] = {{{', '.join(map(str, rows.ravel()))}}};"
    before, after = at.border
    zeros = f"""
  for (int i = blockIdx.x % {tiles}; i < {shape.rows}; i += {tiles}) {{
    const int row = rows_of[group * {shape.rows} + i];
    if (row < 0) break;
    float* const plane = y - p + row * {at.y_row};
    for (int q = threadIdx.x % {shape.threads} * 4; q < {before + after}; q += {4 * shape.threads})
      sp::zero4(plane + (q < {before} ? q - {before} : q + {at.positions - before}));
  }}"""
    return table, zeros


def _float(value: float) -> str:
    return f"{float(value).hex()}f"
