"""Blocks that a permutation of one axis hides: lines with (almost) equal masks are grouped.

Equal lines are found by hashing. With strays hardly a line equals another, so samples of the bits are hashed too, in
several rounds (locality-sensitive hashing by bit sampling: Indyk and Motwani, 1998); what falls together is compared.
"""

from __future__ import annotations

import math

import numpy as np

from sparsetvm.analysis.axis_blocks import ALIKE, MAX_BLOCK, AxisBlocks, block_numbers
from sparsetvm.analysis.chance import log10_partitions
from sparsetvm.analysis.lines import Lines

_ROUNDS = 24
# Pairs with 10 % strays agree in a sample with a chance of about 0.2: of blocks, some of the first rounds see a part.
_FIRST_ROUNDS = 8
_MISSED = 0.02  # share of lines that need not find their group when there are strays
_UNLIKE = 0.1  # most that lines of one group differ, of what both hold
_MARGIN = 1.25  # what real masks are more alike than random ones, in log odds
_ALONE = 0.1  # share of lines without a partner up to which the nearest line is looked for
_COMPARISONS = 1 << 25  # words that may be compared for it
_COMPLETE = 0.15  # share of lines in groups without a dead line that a block size needs


def hidden_blocks(lines: Lines) -> AxisBlocks | None:
    """The largest blocks that some order of the lines shows; dead lines fill groups that lack a line."""
    if lines.counts.size < 2 or not lines.expected:
        return None
    labels, exact = _groups(lines)
    sizes = np.bincount(labels)
    dead = lines.total - lines.counts.size
    missed = 0 if exact else math.ceil(_MISSED * lines.total)
    # Without dead lines first: as they may stand for any, they make larger blocks than there are.
    size = _block_size(sizes, 0, missed)
    filled = size < 2
    if filled:
        size = _block_size(sizes, dead, missed)
    if size < 2:
        return None
    order, offset = _arrange(lines, labels, size)
    rank = np.empty(lines.total, np.int64)
    rank[order] = np.arange(lines.total)
    groups = block_numbers(rank[lines.positions], size, offset)
    return AxisBlocks(lines, size, offset, order, _MARGIN * _hypotheses(lines, labels, exact), groups, labels, filled)


def _hypotheses(lines: Lines, labels: np.ndarray, exact: bool) -> float:
    """log10 of the ways to group the lines; equal ones have as many non-zeros each."""
    sizes = np.bincount(labels)
    if not exact:
        return log10_partitions(sizes.tolist())
    counts = np.zeros(sizes.size, np.int64)
    counts[labels] = lines.counts
    return sum(log10_partitions(sizes[counts == count].tolist()) for count in np.unique(counts))


def _groups(lines: Lines) -> tuple[np.ndarray, bool]:
    """Label of each line's group, and whether lines of a group are equal (there are no strays)."""
    labels = _joined(lines, [_alike(lines, None)])
    # Rounds with samples could only join lines that differ: needless where (almost) all lines have an equal one.
    singles = np.count_nonzero(np.bincount(labels) == 1)
    if singles <= _MISSED * labels.size:
        return labels, True
    rng = np.random.default_rng(0)
    # So many bits that random lines seldom agree in all of them, yet no more than half: strays must miss some samples.
    share = min(0.5, (math.log(lines.counts.size) + 2.0) / lines.expected)
    shape = lines.words.shape[1] * 64
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for done in range(_ROUNDS):
        if done == _FIRST_ROUNDS and not any(first.size for first, _ in pairs):
            break
        pairs.append(_alike(lines, np.packbits(rng.random(shape) < share).view(np.uint64)))
    labels = _joined(lines, pairs)
    alone = np.flatnonzero(np.bincount(labels)[labels] == 1)
    if alone.size <= _ALONE * labels.size and alone.size * lines.words.size <= _COMPARISONS:
        labels = _joined(lines, [*pairs, _nearest(lines, alone)])
    return labels, False


def _nearest(lines: Lines, alone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each of the given lines with the line that it is most alike, if it is at all."""
    everyone = np.arange(lines.counts.size)
    partners = []
    for line in alone:
        distances = lines.distances(np.full_like(everyone, line), everyone)
        distances[line] = np.iinfo(np.int64).max
        partners.append(int(np.argmin(distances)))
    partner = np.array(partners, np.int64)
    alike = lines.distances(alone, partner) <= ALIKE * (lines.counts[alone] + lines.counts[partner])
    return alone[alike], partner[alike]


def _alike(lines: Lines, sample: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of lines with the same hash of the sampled bits (all without a sample) that are indeed alike."""
    words = lines.words if sample is None else lines.words & sample
    live = np.flatnonzero(words.any(axis=1))
    multipliers = np.random.default_rng(1).integers(0, 2**64, words.shape[1], np.uint64)
    mixed = words[live] * np.uint64(0x9E3779B97F4A7C15)
    hashes = ((mixed ^ (mixed >> np.uint64(29))) * multipliers).sum(axis=1)
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    first, second = live[order[same]], live[order[same + 1]]
    most = np.zeros(first.size)
    if sample is not None:
        both = lines.counts[first] + lines.counts[second]
        most = np.maximum(_UNLIKE * np.minimum(both, lines.expected), 1.0)
    alike = lines.distances(first, second) <= most
    return first[alike], second[alike]


def _joined(lines: Lines, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    first, second = np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])
    count = lines.counts.size
    if not first.size:
        return np.arange(count)
    from scipy.sparse import coo_matrix  # not at the top: they take a quarter of a second
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(first.size, np.int8), (first, second)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1])


def _block_size(sizes: np.ndarray, dead: int, missed: int) -> int:
    """Largest block size that groups of these sizes allow; 1 when none does.

    What groups lack must be made up by dead lines, by partial blocks at both ends and by what strays made us miss.
    """
    for size in range(min(MAX_BLOCK, int(sizes.max())), 1, -1):
        lacking = int((-sizes % size).sum())
        complete = int(sizes[sizes % size == 0].sum())
        if lacking <= dead + 2 * (size - 1) + missed * (size - 1) and complete >= _COMPLETE * sizes.sum():
            return size
    return 1


def _arrange(lines: Lines, labels: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """(order, offset): groups by their first line, completed by dead lines; incomplete ones at the ends."""
    live = np.zeros(lines.total, bool)
    live[lines.positions] = True
    dead = np.flatnonzero(~live).tolist()
    grouped = np.argsort(labels, kind="stable")
    members = np.split(lines.positions[grouped], np.cumsum(np.bincount(labels))[:-1])
    full, partial = [], []
    for group in sorted(members, key=lambda group: int(group[0])):
        whole = group.size - group.size % size
        full.append(group[:whole])
        if whole < group.size:
            partial.append(group[whole:])
    partial.sort(key=len, reverse=True)  # dead lines go where the fewest complete a block
    ends = []
    for group in partial:
        lacking = size - group.size
        if lacking <= len(dead):
            full += [group, np.array(dead[:lacking], np.int64)]
            dead = dead[lacking:]
        else:
            ends.append(group)
    first = [ends.pop(0)] if len(ends) > 1 else []
    offset = first[0].size if first else 0
    order = np.concatenate([*first, *full, *ends, np.array(dead, np.int64)])
    return order, offset
