"""The rows of a mask (or its columns, as rows of the transpose) as packed bits that are cheap to compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsetvm.analysis.chance import too_few

_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)  # numpy 1.26 has no bitwise_count


@dataclass(frozen=True)
class Lines:
    """The live lines of one axis.

    words: (lines, words) uint64, the bits of each line. counts: non-zeros per line. positions: where the lines stand
    in the whole matrix, ascending. total: lines of the whole matrix. bits: crossing lines that are neither full nor
    empty. rate: chance that two random lines differ in one of those bits, given how full each crossing line is.
    """

    words: np.ndarray
    counts: np.ndarray
    positions: np.ndarray
    total: int
    bits: int
    rate: float

    def distances(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """In how many bits each line of `first` differs from the line of `second` (indices)."""
        different = self.words[first] ^ self.words[second]
        return _ONES[different.view(np.uint16)].sum(axis=1, dtype=np.int64)

    @property
    def expected(self) -> float:
        """Expected distance of two random lines."""
        return self.bits * self.rate

    def evidence(self, order: np.ndarray, groups: np.ndarray) -> float:
        """-log10 of the chance that the lines of each group are as alike as they are.

        order: lines, those of a group next to each other; groups: the group of each of them. Only disjoint pairs are
        compared, whose bits are independent in a random mask.
        """
        starts = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
        sizes = np.diff(np.append(starts, groups.size))
        rank = np.arange(groups.size) - np.repeat(starts, sizes)
        odd = np.flatnonzero(rank % 2)
        distance = int(self.distances(order[odd - 1], order[odd]).sum())
        return too_few(odd.size * self.bits, distance, self.rate)


def lines_of(core: np.ndarray, positions: np.ndarray, total: int) -> Lines:
    """The rows of `core`, a (lines, crossing lines) bool array that stands at `positions` of `total` rows."""
    packed = np.packbits(core, axis=1)
    words = np.zeros((core.shape[0], -(-packed.shape[1] // 8) * 8), np.uint8)
    words[:, : packed.shape[1]] = packed
    share = np.count_nonzero(core, axis=0) / core.shape[0]
    differ = 2.0 * share * (1.0 - share)
    bits = int(np.count_nonzero(differ))
    rate = float(differ.sum() / bits) if bits else 0.0
    return Lines(words.view(np.uint64), np.count_nonzero(core, axis=1), positions, total, bits, rate)
