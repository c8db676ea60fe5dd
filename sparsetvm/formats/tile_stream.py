"""A sparse matrix as streams of entries for GPU blocks that walk K in chunks with a tile of X in shared memory.

Rows are dealt to blocks and warps so that each chunk costs all warps about the same: a block waits for its slowest warp
at every chunk. (Row swizzles are Sputnik's; evenness per chunk is what shared tiles need on top.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ENTRY = 8  # bytes: float32 value, uint32 byte offset of its X in the tile
_AHEAD = 2  # batches that the kernel reads behind the end of a stream


@dataclass(frozen=True)
class TileStream:
    """Blocks of metadata and the rows that they compute.

    blocks: uint32 words, `block_bytes` for each (row tile, chunk), a tile's chunks in order. rows: (tiles * tile rows,)
    int32, the weight's row at each place, -1 where there is none. chunks: of one tile, a multiple of `parts`.
    group_tiles: row tiles of one convolution group. entries: non-zeros and padding.
    """

    blocks: np.ndarray
    rows: np.ndarray
    chunks: int
    block_bytes: int
    group_tiles: int
    entries: int


@dataclass(frozen=True)
class TileShape:
    """How a block's work is cut: warps of `rows` rows; a row of a chunk is filled up to batch * lane groups."""

    warps: int
    rows: int
    batch: int
    lane_groups: int

    @property
    def unit(self) -> int:
        return self.batch * self.lane_groups

    @property
    def tile_rows(self) -> int:
        return self.warps * self.rows

    @property
    def head(self) -> int:
        """Bytes in front of a block's entries: offset of each warp's entries, rounds of each row."""
        return -(-(self.warps * 4 + self.tile_rows * 2) // 16) * 16


def pack_tile_stream(
    weight: np.ndarray, rows_per_group: int, chunk: int, offsets: np.ndarray, shape: TileShape, parts: int
) -> TileStream:
    """Pack the (m, k) float32 `weight`; column j of a chunk of `chunk` columns has its X at byte offsets[j]."""
    m, k = weight.shape
    chunks = -(-max(-(-k // chunk), 1) // parts) * parts
    row, column = np.nonzero(weight)
    segment = row * chunks + column // chunk
    counts = np.bincount(segment, minlength=m * chunks)
    rounds = (-(-counts // shape.unit)).reshape(m, chunks)
    places = deal_rows(rounds, rows_per_group, shape)  # (tiles, tile_rows)
    tiles = places.shape[0]

    padded = np.where(places[:, :, None] >= 0, rounds[places], 0).transpose(0, 2, 1)  # (tiles, chunks, tile_rows)
    streams = padded.astype(np.int64) * shape.unit
    before = np.cumsum(streams, 2) - streams
    size = shape.head + _ENTRY * (int(streams.sum(2).max()) + _AHEAD * shape.unit)
    block = -(-size // 16) * 16
    blocks = np.zeros((tiles, chunks, block // 4), np.uint32)
    blocks[:, :, : shape.warps] = shape.head + before[:, :, :: shape.rows] * _ENTRY
    halves = blocks.view(np.uint16)[:, :, shape.warps * 2 : shape.warps * 2 + shape.tile_rows]
    halves[:] = padded

    # Where each row of the weight went, then where each of its chunks begins.
    taken = places.ravel() >= 0
    place_of = np.empty(m, np.int64)
    place_of[places.ravel()[taken]] = np.flatnonzero(taken)
    tile_of, slot_of = place_of // shape.tile_rows, place_of % shape.tile_rows
    at = np.arange(chunks)
    starts = (
        (tile_of[:, None] * chunks + at) * block + shape.head + _ENTRY * before[tile_of[:, None], at, slot_of[:, None]]
    )
    # Non-zeros come in the order of their segments, so a running number minus the segment's first is the place in it.
    firsts = np.cumsum(counts) - counts
    words = (starts.ravel()[segment] + _ENTRY * (np.arange(row.size) - firsts[segment])) // 4
    flat = blocks.ravel()
    flat[words] = weight[row, column].astype(np.float32).view(np.uint32)
    flat[words + 1] = offsets.astype(np.uint32)[column % chunk]
    group_tiles = tiles * rows_per_group // m
    return TileStream(flat, places.ravel().astype(np.int32), chunks, block, group_tiles, int(streams.sum()))


def deal_rows(rounds: np.ndarray, rows_per_group: int, shape: TileShape) -> np.ndarray:
    """(tiles, tile_rows) int64 rows at the places of all tiles, -1 where none; rounds: (m, chunks) cost of each row.

    Long rows first, back and forth over the tiles of a group; in a tile each row goes to the warp whose squared loads
    it raises least (all tiles at a time).
    """
    m, chunks = rounds.shape
    groups = m // rows_per_group
    group_tiles = -(-rows_per_group // shape.tile_rows)
    order = np.argsort(-rounds.sum(1).reshape(groups, rows_per_group), axis=1, kind="stable")
    order += np.arange(groups)[:, None] * rows_per_group
    filled = np.full((groups, group_tiles * shape.tile_rows), -1, np.int64)
    filled[:, :rows_per_group] = order
    dealt = filled.reshape(groups, shape.tile_rows, group_tiles)
    dealt[:, 1::2] = dealt[:, 1::2, ::-1]
    by_tile = dealt.transpose(0, 2, 1).reshape(groups * group_tiles, shape.tile_rows)

    tiles = np.arange(by_tile.shape[0])
    loads = np.zeros((tiles.size, shape.warps, chunks), np.float32)
    held = np.zeros((tiles.size, shape.warps), np.int64)
    places = np.full((tiles.size, shape.warps, shape.rows), -1, np.int64)
    for turn in range(shape.tile_rows):
        rows = by_tile[:, turn]
        cost = np.where(rows[:, None] >= 0, rounds[rows], 0).astype(np.float32)
        growth = np.matmul(loads, cost[:, :, None])[:, :, 0]
        growth[held >= shape.rows] = np.inf
        warp = growth.argmin(1)
        places[tiles, warp, held[tiles, warp]] = rows
        held[tiles, warp] += 1
        loads[tiles, warp] += cost
    return places.reshape(tiles.size, shape.tile_rows)
