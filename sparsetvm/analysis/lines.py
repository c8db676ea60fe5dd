"""The rows of a mask (or its columns, as rows of the transpose) as packed bits that are cheap to compare."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparsetvm.analysis.chance import log10_choices, too_few

_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)  # numpy 1.26 has no bitwise_count


@dataclass(frozen=True)
class Lines:
    """The live lines of one axis.

    words: (lines, words) uint64, the bits of each line. counts: non-zeros per line. positions: where the lines stand
    in the whole matrix, ascending. total: lines of the whole matrix. bits: crossing lines that are neither full nor
    empty. rate: chance that two random lines differ in one of those bits, given how full each crossing line is.
    choices: how many equally full crossing lines would leave a random line as much choice.
    """

    words: np.ndarray
    counts: np.ndarray
    positions: np.ndarray
    total: int
    bits: int
    rate: float
    choices: float

    def distances(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """In how many bits each line of `first` differs from the line of `second` (indices)."""
        different = self.words[first] ^ self.words[second]
        return np.asarray(_ONES[different.view(np.uint16)].sum(axis=1, dtype=np.int64))

    @property
    def expected(self) -> float:
        """Expected distance of two random lines."""
        return self.bits * self.rate

    def evidence(self, order: np.ndarray, groups: np.ndarray, repeats: int) -> float:
        """-log10 of the chance that the lines of each group are as alike as they are.

        order: lines, those of a group next to each other; groups: the group of each of them. repeats: so many bits of
        a line go together in blocks and say no more than one. The better of two tests that do not depend on how full
        the lines are: disjoint pairs, whose bits are independent; and every line beside the first of its group, which
        it equals by one of all choices of its non-zeros, times as many as may be strays.
        """
        starts = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
        sizes = np.diff(np.append(starts, groups.size))
        rank = np.arange(groups.size) - np.repeat(starts, sizes)
        odd = np.flatnonzero(rank % 2)
        distance = int(self.distances(order[odd - 1], order[odd]).sum())
        pairs = too_few(odd.size * self.bits, distance, self.rate) / repeats
        others = np.flatnonzero(rank)
        apart = self.distances(order[others - rank[others]], order[others])
        return max(pairs, self._choice(self.counts[order[others]], apart, repeats)) - math.log10(2)

    def _choice(self, counts: np.ndarray, apart: np.ndarray, repeats: int) -> float:
        choices = self.choices / repeats
        kept = np.clip(np.minimum(counts, self.bits - counts) / repeats, 0.0, choices / 2)
        digits = log10_choices(choices, kept) - log10_choices(choices, np.minimum(apart / repeats, choices / 2))
        return float(np.maximum(digits, 0.0).sum())


def lines_of(core: np.ndarray, positions: np.ndarray, total: int) -> Lines:
    """The rows of `core`, a (lines, crossing lines) bool array that stands at `positions` of `total` rows."""
    packed = np.packbits(core, axis=1)
    words = np.zeros((core.shape[0], -(-packed.shape[1] // 8) * 8), np.uint8)
    words[:, : packed.shape[1]] = packed
    share = np.count_nonzero(core, axis=0) / core.shape[0]
    differ = 2.0 * share * (1.0 - share)
    bits = int(np.count_nonzero(differ))
    rate = float(differ.sum() / bits) if bits else 0.0
    choices = float(differ.sum() ** 2 / np.square(differ).sum()) if bits else 0.0
    counts = np.count_nonzero(core, axis=1)
    return Lines(words.view(np.uint64), counts, positions, total, bits, rate, choices)
