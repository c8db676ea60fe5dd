"""A sparse matrix as streams of entries for GPU warps that read a column of X once for several rows.

A warp owns a few rows; its entries of a chunk of K come column after column, and each names the row that it belongs
to: the kernel jumps to that row's code (direct threading: Bell, "Threaded code", CACM 1973). The last entry of a column
says where the next column's X lies in the tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.formats.tile_stream import TileShape, deal_rows

_WORDS = 2  # of an entry, and of a stream's head
_BEHIND = 2  # entries behind the last: the end, and one that is read ahead
_NEXT = np.uint32(1 << 31)


@dataclass(frozen=True)
class DispatchStream:
    """Blocks of entries and the rows that they compute.

    blocks: uint32 words, `block_bytes` for each (row tile, chunk), a tile's chunks in order. A block is the byte offset
    of each warp's stream, then the streams: byte offset of the first column's X, unused; entries (float32 value, code);
    the end (0, code `rows`); one more. A code is the row's place in the warp; the last entry of a column adds 1 << 31
    and the byte offset of the next column's X (a multiple of `row_bytes`). rows: (tiles * warps * rows,) int32, the
    weight's row at each place, -1 where there is none. chunks: of one tile, a multiple of `parts`.
    """

    blocks: np.ndarray
    rows: np.ndarray
    chunks: int
    block_bytes: int


def pack_dispatch_stream(
    weight: np.ndarray, chunk: int, row_bytes: int, warps: int, rows: int, parts: int
) -> DispatchStream:
    """Pack the (m, k) float32 `weight` for warps of `rows` rows and chunks of `chunk` columns.

    row_bytes: of a column's X in the tile, a power of two above `rows`.
    """
    m, k = weight.shape
    chunks = -(-max(-(-k // chunk), 1) // parts) * parts
    shape = TileShape(warps, rows, 1, 1)
    row, column = np.nonzero(weight)
    counts = np.bincount(row * chunks + column // chunk, minlength=m * chunks).reshape(m, chunks)
    places = deal_rows(counts, m, shape).ravel()
    place_of = np.empty(m, np.int64)
    place_of[places[places >= 0]] = np.flatnonzero(places >= 0)

    # Entries in the order of (tile, chunk, warp, column, row of the warp).
    place = place_of[row]
    stream = (place // shape.tile_rows * chunks + column // chunk) * warps + place % shape.tile_rows // rows
    order = np.lexsort((place % rows, column, stream))
    stream, column, value = stream[order], column[order], weight[row, column][order].astype(np.float32)
    code = (place[order] % rows).astype(np.uint32)
    at = column % chunk * row_bytes
    ends = np.flatnonzero((stream[1:] == stream[:-1]) & (column[1:] != column[:-1]))
    code[ends] |= _NEXT | at[ends + 1].astype(np.uint32)

    tiles = places.size // shape.tile_rows
    sizes = np.bincount(stream, minlength=tiles * chunks * warps)
    words = _WORDS * (1 + sizes + _BEHIND).reshape(tiles * chunks, warps)
    head = -(-warps // _WORDS) * _WORDS
    starts = head + np.cumsum(words, 1) - words
    block = -(-int((head + words.sum(1)).max()) // 4) * 4
    blocks = np.zeros((tiles * chunks, block), np.uint32)
    blocks[:, :warps] = starts * 4
    flat = blocks.ravel()
    begins = (np.arange(tiles * chunks)[:, None] * block + starts).ravel()
    firsts = np.cumsum(sizes) - sizes
    some = sizes > 0
    flat[begins[some]] = at[firsts[some]]
    to = begins[stream] + _WORDS * (1 + np.arange(stream.size) - firsts[stream])
    flat[to], flat[to + 1] = value.view(np.uint32), code
    last = begins + _WORDS * (1 + sizes)
    for ahead in range(_BEHIND):
        flat[last + _WORDS * ahead + 1] = rows
    return DispatchStream(flat, places.astype(np.int32), chunks, block * 4)
