"""Lookup format for sparse matrix times vector: 16 rows at a time walk over blocks of 16 columns.

A block of x is one AVX-512 register, and `vpermi2ps` looks 16 values up in two of them. A step loads one or two blocks
into a sliding window of two or four and multiplies each of the 16 rows (lanes) by one non-zero from any block of the
window; a lane that has none there idles with a weight of zero (padding). All rows of a slice stay in one accumulator
until the slice is done.

Which block comes next is free, since the order of a sum is. The walk is greedy: the block that serves most idle lanes,
less a price for every lane that needs the block at all. The price sends the walk to nearly exhausted blocks first and
keeps the full ones, which serve any lane, for last. Stored values per non-zero at 90 % random sparsity: 1.13 with a
window of four, 1.45 with two, where slices of fixed 32-column chunks stored 2.0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LANES = 16
BLOCK = 16
_PRICES = (2, 4, 7)  # tenths of a served lane
_SAMPLED_SLICES = 8
_POPULATION = np.array([bin(i).count("1") for i in range(1 << LANES)], np.int16)
_NEVER = np.int16(20000)  # price of an exhausted block


@dataclass(frozen=True)
class LookupFormat:
    """Groups of `group` steps; slice s has the groups first[s] : first[s + 1], part p the slices of bounds likewise.

    window: blocks that a step looks up in; fresh: how many of them it loads. Both hold block 0 before the first step.
    values: float32 [group][step][lane].
    ids: uint32 [group][lane], a field of `id_bits` per step, the first one lowest. With a window of two the field is
        16 * position in the window (0 = oldest) + column; with four its lowest bit tells the newer two blocks.
    walk: int64 [group][word], `per_word` fields of `block_bits`: the blocks that the steps load, in order.
    order: original row of each lane of each slice; lanes beyond the last row repeat it.
    """

    window: int
    fresh: int
    group: int
    block_bits: int
    values: np.ndarray
    ids: np.ndarray
    walk: np.ndarray
    first: np.ndarray
    bounds: np.ndarray
    order: np.ndarray

    @property
    def id_bits(self) -> int:
        return 5 if self.window == 2 else 6

    @property
    def per_word(self) -> int:
        return 64 // self.block_bits

    @property
    def words(self) -> int:
        """Words of `walk` per group."""
        return -(-self.group * self.fresh // self.per_word)

    @property
    def padding(self) -> float:
        """Stored values per non-zero."""
        return self.values.size / max(1, int(np.count_nonzero(self.values)))


def pack_lookup(weight: np.ndarray, parts: int, *, window: int, fresh: int, sort_rows: bool) -> LookupFormat:
    """Format of `weight` (m, k), its row slices dealt to `parts` threads by steps.

    `window` is 2 or 4, `fresh` 1 or 2. `sort_rows` puts rows of similar length into one slice: less padding for uneven
    rows, but y must be scattered.
    """
    m, k = weight.shape
    lengths = np.count_nonzero(weight, axis=1)
    rows = np.argsort(-lengths, kind="stable") if sort_rows else np.arange(m)
    slices, blocks = -(-m // LANES), -(-k // BLOCK)
    order = np.minimum(np.arange(slices * LANES), m - 1)
    order = rows[order]
    row, column = np.nonzero(weight[order])
    value = weight[order][row, column]
    count = np.bincount(row * blocks + column // BLOCK, minlength=slices * LANES * blocks)
    end = np.cumsum(count).reshape(slices, LANES, blocks)
    left = count.reshape(slices, LANES, blocks).astype(np.int16)
    walk = _walk(left, window, fresh, _best_price(left, window, fresh))

    group = 6 if window == 2 else 5
    steps = np.bincount(walk.slices, minlength=slices)
    first = np.concatenate([[0], np.cumsum(-(-steps // group))])
    groups = max(1, int(first[-1]))
    at = first[walk.slices] * group + walk.steps
    # The non-zeros of a (row, block) pair are consecutive and served in order.
    block = np.take_along_axis(walk.blocks, np.maximum(walk.position, 0).astype(np.intp), axis=1)
    lane = np.arange(LANES)[None, :]
    busy = walk.position >= 0
    element = np.where(busy, end[walk.slices[:, None], lane, block] - walk.left, 0)
    values = np.zeros((groups * group, LANES), np.float32)
    values[at] = np.where(busy, value[element], 0)
    ids = np.zeros((groups * group, LANES), np.uint32)
    ids[at] = np.where(busy, walk.position * BLOCK + column[element] % BLOCK, 0)
    loads = np.zeros((groups * group, fresh), np.uint64)
    loads[at] = walk.blocks[:, window - fresh :]
    block_bits = 10 if blocks <= 1 << 10 else 16
    id_bits = 5 if window == 2 else 6
    if window > 2:
        ids = (ids >> 5 | (ids & 31) << 1).astype(np.uint32)
    return LookupFormat(
        window, fresh, group, block_bits, values.ravel(),
        _fields(ids.reshape(groups, group, LANES).transpose(0, 2, 1), id_bits, 32 // id_bits).ravel(),
        _fields(loads.reshape(groups, group * fresh), block_bits, 64 // block_bits).ravel().astype(np.int64),
        first.astype(np.int32), _deal(steps, parts), order.astype(np.int32),
    )  # fmt: skip


@dataclass(frozen=True)
class _Walk:
    """One entry per (slice, step): blocks (n, window) from oldest to newest; position (n, LANES) of the block that
    serves each lane, -1 for idle lanes; left (n, LANES): non-zeros that the lane then still had in that block.
    """

    slices: np.ndarray
    steps: np.ndarray
    blocks: np.ndarray
    position: np.ndarray
    left: np.ndarray


def _walk(left: np.ndarray, window: int, fresh: int, price: int) -> _Walk:
    """All slices side by side; left: (slices, LANES, blocks) non-zeros."""
    left = left.copy()
    alive = np.arange(len(left))
    todo = left.sum(axis=(1, 2), dtype=np.int64)
    needed = _bits(left > 0)
    prices = (price * _POPULATION).astype(np.int16)
    prices[0] = _NEVER
    served = (10 * _POPULATION).astype(np.int16)
    blocks = np.zeros((len(left), window), np.intp)
    entries: list[tuple[np.ndarray, ...]] = []
    step = 0
    while todo.any():
        if np.count_nonzero(todo) < 0.75 * len(todo):
            keep = todo > 0
            left, alive, todo, needed, blocks = left[keep], alive[keep], todo[keep], needed[keep], blocks[keep]
        each = np.arange(len(left))
        position = np.full((len(left), LANES), -1, np.int8)
        had = np.zeros((len(left), LANES), np.int32)
        blocks[:, : window - fresh] = blocks[:, fresh:]
        for at in range(window):
            if at >= window - fresh:
                idle = _bits(position[:, :, None] < 0)
                blocks[:, at] = (served[needed & idle] - prices[needed]).argmax(axis=1)
            block = blocks[:, at]
            have = left[each, :, block]
            takes = (have > 0) & (position < 0)
            position[takes] = at
            had[takes] = have[takes]
            have = have - takes
            left[each, :, block] = have
            needed[each, block] = _bits(have[:, :, None] > 0)[:, 0]
        live = todo > 0
        entries.append((alive[live], np.full(np.count_nonzero(live), step), blocks[live], position[live], had[live]))
        todo = todo - np.count_nonzero(position >= 0, axis=1)
        step += 1
    if not entries:
        nothing = np.zeros((0, LANES), np.int8)
        return _Walk(alive[:0], alive[:0], blocks[:0], nothing, nothing)
    return _Walk(*(np.concatenate(column) for column in zip(*entries, strict=True)))


def _bits(lanes: np.ndarray) -> np.ndarray:
    """(n, LANES, b) booleans -> (n, b) uint16, bit i = lane i."""
    packed = np.packbits(lanes, axis=1, bitorder="little").astype(np.uint16)
    return np.asarray(packed[:, 0] | packed[:, 1] << 8)


def _best_price(left: np.ndarray, window: int, fresh: int) -> int:
    """The price with the shortest walks in a sample of the slices."""
    sample = left[:: -(-len(left) // _SAMPLED_SLICES)]
    return min(_PRICES, key=lambda price: len(_walk(sample, window, fresh, price).slices))


def _fields(numbers: np.ndarray, bits: int, per_word: int) -> np.ndarray:
    """Unsigned (..., n) -> words (..., ceil(n / per_word)), the first number in the lowest bits."""
    words = -(-numbers.shape[-1] // per_word)
    padded = np.zeros((*numbers.shape[:-1], words * per_word), numbers.dtype)
    padded[..., : numbers.shape[-1]] = numbers
    shifts = (np.arange(per_word) * bits).astype(numbers.dtype)
    shifted = padded.reshape(*numbers.shape[:-1], words, per_word) << shifts
    return np.asarray(np.bitwise_or.reduce(shifted, axis=-1))


def _deal(steps: np.ndarray, parts: int) -> np.ndarray:
    """(parts + 1,) int32: contiguous ranges of slices with about equally many steps."""
    total = np.cumsum(steps)
    shares = np.arange(1, parts) * (total[-1] / parts)
    return np.concatenate([[0], np.searchsorted(total - steps / 2, shares), [len(steps)]]).astype(np.int32)
