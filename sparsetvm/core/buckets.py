"""Sizes of an open dimension that kernels exist for, and how a run of any size is put together from them.

A **bucket** is one such size. Where positions are independent (a batch), a run is a sequence of buckets, the last one
perhaps filled up; elsewhere (tokens, which attention mixes) it is one bucket that is large enough, filled up behind a
mask. Which is fastest, the buckets' times say.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from sparsetvm.errors import UsageError

MOST_BUCKETS = 32
LARGEST_BUCKET = 1 << 14
# The table of first buckets reaches so many times the largest one; what is longer begins with the cheapest bucket.
_REACH = 2
_MOST_AXES = 16


MaskKind = Literal["lowest", "keep", "share"]


class MaskInput(msgspec.Struct, frozen=True):
    """A tensor that says which positions are real, of size 1 in all dimensions but `axis`.

    "lowest" has 0 there and -inf elsewhere, "keep" 1 and 0; "share" is a scalar, one over their number.
    """

    kind: MaskKind
    rank: int
    axis: int

    def values(self, bucket: int, size: int) -> np.ndarray:
        """float32, for `size` real positions."""
        if self.kind == "share":
            return np.array(1.0 / size, np.float32)
        real, padded = (0.0, -np.inf) if self.kind == "lowest" else (1.0, 0.0)
        flat = np.where(np.arange(bucket) < size, real, padded).astype(np.float32)
        return flat.reshape([bucket if at == self.axis else 1 for at in range(self.rank)])


class Dynamic(msgspec.Struct, frozen=True):
    """The open dimension of a compiled model, as its manifest has it.

    name: in the ONNX file, "batch" where it has none. buckets: ascending. splits: any size may run, in slices;
    otherwise the largest one is the limit. cost_us: measured or estimated time of each bucket. masks: further inputs
    that the functions of buckets of at least 2 positions take, behind the model's.
    """

    name: str
    buckets: tuple[int, ...]
    splits: bool
    cost_us: tuple[float, ...]
    masks: tuple[MaskInput, ...] = ()

    @property
    def limit(self) -> int | None:
        """The largest size, None for any."""
        return None if self.splits else self.buckets[-1]

    def problem(self) -> str:
        """Why it makes no sense, "" when it does."""
        ascending = all(a < b for a, b in zip(self.buckets, self.buckets[1:], strict=False))
        if not self.buckets or not ascending or not 1 <= self.buckets[0] <= self.buckets[-1] <= LARGEST_BUCKET:
            return "impossible buckets"
        if len(self.cost_us) != len(self.buckets) or not all(0 < cost < float("inf") for cost in self.cost_us):
            return "impossible times of buckets"
        if any(not 0 <= mask.axis < max(1, mask.rank) <= _MOST_AXES for mask in self.masks):
            return "impossible masks"
        return ""


def parse_buckets(text: str) -> tuple[str | None, tuple[int, ...]]:
    """ "1,8,64" or "seq=16,128" -> (name of the dimension or None, sizes). Raises UsageError."""
    name, equals, sizes = text.rpartition("=")
    if not re.fullmatch(r"[0-9]+(,[0-9]+)*", sizes.replace(" ", "")) or (equals and not name):
        raise UsageError(f"--buckets {text}: no list of sizes", hint="write 1,8,64 or, with a dimension, seq=16,128")
    return (name or None), checked_buckets([int(size) for size in sizes.split(",")])


def checked_buckets(sizes: Sequence[int]) -> tuple[int, ...]:
    """Ascending, each once. Raises UsageError for none, too many or impossible ones."""
    buckets = tuple(sorted(set(sizes)))
    if not buckets or len(buckets) > MOST_BUCKETS:
        raise UsageError(f"--buckets: {len(buckets)} sizes", hint=f"give 1 to {MOST_BUCKETS} of them")
    if buckets[0] < 1 or buckets[-1] > LARGEST_BUCKET:
        wrong = buckets[0] if buckets[0] < 1 else buckets[-1]
        raise UsageError(f"--buckets: size {wrong}", hint=f"sizes go from 1 to {LARGEST_BUCKET}")
    return buckets


@functools.lru_cache(maxsize=8)
def smallest_cost(dynamic: Dynamic) -> tuple[int, ...]:
    """For each size from 0 to the largest bucket, the number of the bucket that it runs in; that of size 0 is 0."""
    order = range(len(dynamic.buckets))
    return tuple(
        min((at for at in order if dynamic.buckets[at] >= size), key=lambda at: (dynamic.cost_us[at], at))
        for size in range(dynamic.buckets[-1] + 1)
    )


def steady_bucket(dynamic: Dynamic) -> int:
    """The number of the bucket that costs least per position: long runs begin with it."""
    return min(range(len(dynamic.buckets)), key=lambda at: (dynamic.cost_us[at] / dynamic.buckets[at], at))


@functools.lru_cache(maxsize=8)
def counts_table(dynamic: Dynamic) -> np.ndarray:
    """Row n: how often each bucket runs for n positions, so that the sum of their times is least; (2 * largest + 1, k).

    A knapsack whose last piece may reach beyond the end; of equal costs the one with fewer pieces is taken.
    """
    length, kinds = _REACH * dynamic.buckets[-1], len(dynamic.buckets)
    best: list[tuple[float, int]] = [(0.0, 0)]
    first = [0]
    for size in range(1, length + 1):
        rest = [best[max(0, size - bucket)] for bucket in dynamic.buckets]
        costs = [(cost + dynamic.cost_us[at], pieces + 1) for at, (cost, pieces) in enumerate(rest)]
        first.append(min(range(kinds), key=lambda at: costs[at]))
        best.append(costs[first[-1]])
    table = np.zeros((length + 1, kinds), np.int32)
    for size in range(1, length + 1):
        table[size] = table[max(0, size - dynamic.buckets[first[size]])]
        table[size, first[size]] += 1
    table.flags.writeable = False  # it is kept, and given to all who ask
    return table


def pieces(dynamic: Dynamic, size: int) -> list[tuple[int, int]]:
    """(bucket, first position) of each piece that a run of `size` positions consists of, largest bucket first."""
    if not dynamic.splits:
        return [(dynamic.buckets[smallest_cost(dynamic)[size]], 0)]
    table, steady = counts_table(dynamic), steady_bucket(dynamic)
    long = max(0, -(-(size - len(table) + 1) // dynamic.buckets[steady]))
    counts = table[size - long * dynamic.buckets[steady]].tolist()
    counts[steady] += long
    found, at = [], 0
    for bucket, count in reversed(list(zip(dynamic.buckets, counts, strict=True))):
        for _ in range(count):
            found.append((bucket, at))
            at += bucket
    return found
