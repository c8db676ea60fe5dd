"""A weight matrix by columns for GPU kernels that read only the columns of non-zero activations.

A block of rows has a slot for each column: 32 bytes, what L2 reads at once, with up to six of the block's non-zeros in
that column. So where a column's weights lie needs no look-up. More non-zeros follow in further slots, behind those of
all columns; a slot says where the next one is.

    bytes 0 - 23: six weights in float32
    bytes 24 - 31: a word; from its lowest bit on six rows in the block (6 bits each, two unused ones before the last),
        how many of the six there are (3 bits), the next slot (23 bits; 1 is the first behind the columns', 0 none)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ENTRIES, SLOT_BYTES = 6, 32
MOST_ROWS = 64  # of a block: rows have 6 bits
_ROW_BITS, _COUNT_BITS = 6, 3
_LAST_ROW, _COUNT_AT, _NEXT_AT = 32, 38, 41  # bits of the word
_MOST_NEXT = (1 << (64 - _NEXT_AT)) - 1


@dataclass(frozen=True)
class ColumnSlots:
    """Slots of all blocks of rows behind each other.

    slots: uint8 (slots, 32). first: (blocks,) int32, the slot of the block's first column.
    """

    slots: np.ndarray
    first: np.ndarray


def pack_column_slots(weight: np.ndarray, rows: int) -> ColumnSlots:
    """Slots of `weight` (m, k) for blocks of `rows` rows, 64 at most. Raises ValueError for more than 2^31 slots."""
    if rows > MOST_ROWS:
        raise ValueError(f"{rows} rows do not fit into {_ROW_BITS} bits")
    m, k = weight.shape
    blocks = -(-m // rows)
    # Non-zeros by block, then column, then row; `number` counts those of one block and column.
    column, row = np.nonzero(weight.T)
    order = np.lexsort((row, column, row // rows))
    row, column = row[order], column[order]
    group = row // rows * k + column
    counts = np.bincount(group, minlength=blocks * k)
    number = np.arange(group.size) - np.repeat(np.cumsum(counts) - counts, counts)
    needed = np.maximum(1, -(-counts // ENTRIES)).reshape(blocks, k)
    more = needed - 1
    before = np.cumsum(more, axis=1) - more  # further slots of the block's columns before
    of_block = k + more.sum(axis=1)
    total = int(of_block.sum())
    if total >= 1 << 31 or before.max(initial=0) + more.max(initial=0) > _MOST_NEXT:
        raise ValueError(f"{total} slots are too many to number")
    first = np.cumsum(of_block) - of_block
    # Where the slot number `step` of a group lies: the first at its column, others behind all columns.
    step = number // ENTRIES
    block, place = row // rows, number % ENTRIES
    at = first[block] + np.where(step == 0, column, k + before.ravel()[group] + step - 1)
    values, words = np.zeros((total, ENTRIES), np.float32), np.zeros(total, np.uint64)
    values[at, place] = weight[row, column]
    shift = np.where(place == ENTRIES - 1, _LAST_ROW, place * _ROW_BITS).astype(np.uint64)
    np.bitwise_or.at(words, at, (row % rows).astype(np.uint64) << shift)
    np.add.at(words, at, np.uint64(1 << _COUNT_AT))
    has_next = (place == 0) & (step + 1 < needed.ravel()[group])
    following = before.ravel()[group] + step + 1
    np.bitwise_or.at(words, at[has_next], following[has_next].astype(np.uint64) << np.uint64(_NEXT_AT))
    slots = np.empty((total, SLOT_BYTES), np.uint8)
    slots[:, : 4 * ENTRIES] = values.view(np.uint8)
    slots[:, 4 * ENTRIES :] = words[:, None].view(np.uint8)
    return ColumnSlots(slots, first.astype(np.int32))
