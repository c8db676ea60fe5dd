"""Sparse rows dealt to the blocks and warps of a GPU: groups of rows of like length, walked side by side.

Rows are dealt to row tiles so that tiles have equal work; each tile's columns fall into `parts` parts (one per block)
of `slices` pieces. In a block, pieces are sorted by length, every `group` of them share a warp and are padded to the
longest, and groups go to the warp that has the least to do (longest first). Sorting rows by length so that neighbours
pad little is row swizzling as in Sputnik (Gale et al., SC 2020) and SELL-C-sigma (Kreutzer et al., 2014).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# float4s behind the last entry that a kernel may read ahead.
READ_AHEAD = 128


@dataclass(frozen=True)
class Dealing:
    """How rows are dealt: `rows` of a tile, `parts` x `slices` pieces of K, `warps` of a block, `group` rows of a warp
    side by side, batches of `unroll` entries. rotate: the warps of a block start at different columns, so that together
    they touch all of X at once (else all sweep it in the same order).
    """

    rows: int
    parts: int
    slices: int
    warps: int
    group: int
    unroll: int
    rotate: bool

    def part_columns(self, k: int) -> int:
        return -(-k // self.parts)


@dataclass(frozen=True)
class RowGroups:
    """Arrays that spmm_rows.cu documents.

    heads: (tiles * parts * warps * 4,), groups: (groups + 1) * group * 2, rows: (tiles * rows,) int32.
    entries: float32, every second one the bits of a uint32 byte offset.
    """

    heads: np.ndarray
    groups: np.ndarray
    entries: np.ndarray
    rows: np.ndarray


def pack_row_groups(weight: np.ndarray, offsets: np.ndarray, deal: Dealing) -> RowGroups:
    """Pack (m, k) `weight`; offsets: (g, k) bytes, those of rows [i * m / g, (i + 1) * m / g) in row i."""
    m, k = weight.shape
    tiles, blocks, u = -(-m // deal.rows), -(-m // deal.rows) * deal.parts, deal.unroll
    row, column = np.nonzero(weight)
    rows, tile_of, local_of = _deal_rows(np.bincount(row, minlength=m), tiles, deal.rows)

    # Step 1. Pieces: (block, slice, local row).
    part_columns = deal.part_columns(k)
    slice_columns = -(-part_columns // deal.slices)
    within = column % part_columns
    block = tile_of[row] * deal.parts + column // part_columns
    piece = (block * deal.slices + within // slice_columns) * deal.rows + local_of[row]
    lengths = np.bincount(piece, minlength=blocks * deal.slices * deal.rows).reshape(blocks, -1)
    real = np.broadcast_to((rows >= 0)[:, None, None], (tiles, deal.parts, deal.slices, deal.rows)).reshape(blocks, -1)

    # Step 2. Groups of pieces of like length, dealt to warps.
    count = lengths.shape[1]
    per_block = -(-count // deal.group)
    members = np.argsort(np.where(real, -lengths, 1), axis=1, kind="stable")
    members = np.pad(members, ((0, 0), (0, per_block * deal.group - count)), constant_values=-1)
    exists = (members >= 0) & np.take_along_axis(real, np.maximum(members, 0), 1)
    sizes = np.where(exists, np.take_along_axis(lengths, np.maximum(members, 0), 1), 0)
    batches = -(-sizes.reshape(blocks, per_block, deal.group).max(2) // u)
    used: np.ndarray = np.any(exists.reshape(blocks, per_block, deal.group), axis=2)
    warp = _deal_groups(batches, used, deal.warps)

    # Step 3. Streams: the groups of a warp one after another.
    warp_number = np.where(used, np.arange(blocks)[:, None] * deal.warps + warp, blocks * deal.warps).ravel()
    order = np.argsort(warp_number, kind="stable")[: int(used.sum())]
    sorted_batches = batches.ravel()[order]
    first_batch = np.concatenate(([0], np.cumsum(sorted_batches)))
    bounds = np.searchsorted(warp_number[order], np.arange(blocks * deal.warps + 1))
    heads = np.zeros((blocks * deal.warps, 4), np.int32)
    heads[:, 0], heads[:, 1], heads[:, 2] = first_batch[bounds[:-1]], bounds[:-1], np.diff(bounds)
    share = -(-deal.rows // deal.parts)
    shares = np.pad(rows >= 0, ((0, 0), (0, share * deal.parts - deal.rows))).reshape(blocks, share)
    heads[:, 3] = np.repeat(shares.sum(axis=1), deal.warps)
    chosen = np.where(exists, members, -1).reshape(-1, deal.group)[order]
    groups = np.full((order.size + 1, deal.group, 2), -1, np.int32)
    groups[:-1, :, 0] = chosen
    if deal.parts * deal.slices == 1:  # the warp finishes its rows itself
        groups[:-1, :, 0] = np.where(chosen >= 0, rows[(order // per_block)[:, None], chosen], -1)
    groups[:, :, 1] = np.append(sorted_batches, 0)[:, None]

    # Step 4. Entries, each at its step of its piece's stream.
    own_block = (order // per_block)[:, None]
    streams = _Streams(np.where(chosen >= 0, chosen + own_block * count, -1), first_batch, lengths.ravel())
    start = np.zeros(order.size, np.int64)
    if deal.rotate:
        start = warp.ravel()[order] * slice_columns // deal.warps
    key = (within % slice_columns - start[streams.number[piece]]) % slice_columns
    sort = np.lexsort((key, piece))
    row, column = row[sort], column[sort]
    offset = offsets[row // (m // len(offsets)), column]
    entries = streams.entries(piece[sort], weight[row, column], offset, deal)
    return RowGroups(heads.ravel(), groups.ravel(), entries, rows.ravel())


class _Streams:
    """Which stream and lane a piece is in, and where the stream begins.

    members: (streams, group) piece numbers, -1 for none; first_batch: (streams + 1,); lengths: of all pieces.
    """

    def __init__(self, members: np.ndarray, first_batch: np.ndarray, lengths: np.ndarray) -> None:
        self.members, self.first_batch, self.lengths = members, first_batch, lengths
        self.number, self.lane = (np.zeros(lengths.size, np.int64) for _ in range(2))
        self.number[members[members >= 0]], self.lane[members[members >= 0]] = np.nonzero(members >= 0)

    def entries(self, piece: np.ndarray, value: np.ndarray, offset: np.ndarray, deal: Dealing) -> np.ndarray:
        """The entries in the kernel's order; `piece` rises. What fills batches up reads what its own row reads."""
        last = np.zeros(self.lengths.size, np.uint32)
        last[piece] = offset  # of equal pieces the last one stays
        padding = np.where(self.members >= 0, last[np.maximum(self.members, 0)], 0).astype(np.uint32)
        pairs = np.diff(self.first_batch) * deal.unroll // 2
        found = np.zeros((int(pairs.sum()), deal.group, 2, 2), np.uint32)
        found[..., 1] = np.repeat(padding, pairs, axis=0)[:, :, None]
        begin = np.cumsum(self.lengths) - self.lengths
        step = np.arange(piece.size) - begin[piece] + self.first_batch[self.number[piece]] * deal.unroll
        found[step // 2, self.lane[piece], step % 2, 0] = value.astype(np.float32).view(np.uint32)
        found[step // 2, self.lane[piece], step % 2, 1] = offset
        return np.concatenate((found.ravel(), np.zeros(READ_AHEAD * 4, np.uint32))).view(np.float32)


def _deal_rows(lengths: np.ndarray, tiles: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tiles, rows) row numbers (-1: none), and tile and place of every row; back and forth, the longest rows first."""
    m = lengths.size
    order = np.argsort(-lengths, kind="stable")
    turn, at = np.arange(m) // tiles, np.arange(m) % tiles
    tile = np.where(turn % 2, tiles - 1 - at, at)
    dealt = np.full((tiles, rows), -1, np.int32)
    dealt[tile, turn] = order
    tile_of, local_of = np.empty(m, np.int64), np.empty(m, np.int64)
    tile_of[order], local_of[order] = tile, turn
    return dealt, tile_of, local_of


def _deal_groups(batches: np.ndarray, used: np.ndarray, warps: int) -> np.ndarray:
    """(blocks, groups) warp of every group; `batches` falls along a block."""
    blocks, count = batches.shape
    load = np.zeros((blocks, warps), np.int64)
    warp = np.zeros((blocks, count), np.int64)
    every = np.arange(blocks)
    for g in range(count):
        warp[:, g] = load.argmin(1)
        load[every, warp[:, g]] += np.where(
            used[:, g], batches[:, g] + 1, 0
        )  # 1: what a group costs beyond its entries
    return warp
