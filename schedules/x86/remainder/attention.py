"""Fused multi-head attention on Tiled activations: lanes are query tokens, so the softmax needs no step across lanes.

    for each (image, head, group of NR query tiles):
        P[k] = scale * sum_j Q[j] * K[j, k] (+ mask)      MR keys x NR tiles of accumulators, K scalars broadcast
        P[k] = exp(P[k] - max_k P), sums of P             sequential over k
        Y[j] = sum_k P[k] * V[k, j] / sum_k P[k]          MR features x NR tiles of accumulators, V scalars broadcast

The K tile of 16 keys holds feature j of all of them side by side, so both products broadcast from one or a few cache
lines. Only one group's P ([seq][NR][lanes]) exists per thread.

Requires: Q, K, V and Y in Tiled(batch * seq, heads * head_dim, lanes), head h in columns h * head_dim and on; with
several images, seq a multiple of the lanes, so that no tile holds tokens of two images.
"""

from __future__ import annotations

import math

from sparsetvm.schedules.operators import Attention
from sparsetvm.schedules.x86 import tir
from sparsetvm.schedules.x86.remainder.runs import each_vector
from tvm import tirx
from tvm.tirx.script import builder as B

from sparsetvm.core.target import Target
from sparsetvm.errors import SparseTvmError

__all__ = ["Attention", "attention_kernel", "attention_supported"]


def attention_supported(attention: Attention, target: Target) -> bool:
    """True when `attention_kernel` can implement it."""
    a = attention
    return a.mask_fits and (a.batch == 1 or a.seq % target.lanes == 0)


def attention_kernel(attention: Attention, target: Target, symbol: str) -> tir.Expr:
    """PrimFunc (Q, K, V, [mask], Y). A score more than 87 below the largest counts as exp(-87).

    Raises SparseTvmError when `attention_supported` does not hold.
    """
    if not attention_supported(attention, target):
        raise SparseTvmError(
            f"no fused kernel for {attention} with {target.lanes} lanes",
            hint="compile it as two products and a softmax",
        )
    physical = attention.layout(target.lanes).physical_shape(())
    shapes = {"Q": physical, "K": physical, "V": physical}
    if attention.mask_shape is not None:
        shapes["M"] = attention.mask_shape
    with tir.prim_func(symbol) as builder:
        args = dict(zip([*shapes, "Y"], tir.flat_args(**shapes, Y=physical), strict=True))
        per_image = -(-attention.seq // target.lanes)
        # Equal groups but for one tile: `big` of size + 1, the rest of `size`.
        groups = -(-per_image // 3)
        size, big = divmod(per_image, groups)
        for first, count, nr in ((0, big, size + 1), (big * (size + 1), groups - big, size)):
            if count:
                with tir.outer(attention.batch * attention.heads * count, target.threads) as index:
                    group = _Group(attention, target, args, nr)
                    head_of_image, at = index // count, index % count
                    image, head = head_of_image // attention.heads, head_of_image % attention.heads
                    group.compute(image, head, first + at * nr)
    return builder.get()


class _Group:
    """Builds the attention of NR neighbouring query tiles of one head."""

    def __init__(self, attention: Attention, target: Target, args: dict[str, tir.Buffer], nr: int) -> None:
        self.a, self.args, self.nr, self.lanes = attention, args, nr, target.lanes
        self.cols = attention.heads * attention.head_dim
        self.per_image = -(-attention.seq // target.lanes)
        # MR * NR accumulators, NR loaded vectors and one broadcast must fit the register file.
        budget = (target.registers - 1 - nr) // nr
        self.mr = max(size for size in (1, 2, 4, 8, 16) if size <= min(budget, target.lanes))

    def compute(self, image: tir.Expr, head: tir.Expr, tile: tir.Expr) -> None:
        """Query tiles tile ... tile + NR - 1 of the image."""
        self.image, self.head, self.tile = image, head, tile
        self.p = tir.scratch(self.a.seq * self.nr * self.lanes)
        self.query_mask = self.a.mask_shape is not None and self.a.mask_shape[2] > 1
        if self.query_mask:
            self._transpose_mask()
        largest = tir.Registers(self.nr, self.lanes, fill=-math.inf)
        self._scores(largest)
        totals = self._exponentials(largest)
        inverse = [tir.reciprocal(tir.let(totals[n]), self.lanes) for n in range(self.nr)]
        for first in range(0, self.a.head_dim, self.mr):
            self._outputs(first, min(self.mr, self.a.head_dim - first), inverse)

    def _at(self, tile: tir.Expr, feature: tir.Expr) -> tir.Expr:
        """Offset of the vector of a feature of this head in Q, K, V or Y; `tile` counts inside the image."""
        return ((self.image * self.per_image + tile) * self.cols + self.head * self.a.head_dim + feature) * self.lanes

    def _p(self, key: tir.Expr, n: int) -> tir.Expr:
        """Offset of the scores of a key in the scratch buffer."""
        return (key * self.nr + n) * self.lanes

    def _mask_row(self, query: tir.Expr) -> tir.Expr:
        """Offset of mask row `query` for this image and head."""
        images, heads, queries, keys = self.a.mask_shape or (1, 1, 1, 1)
        image = self.image if images > 1 else 0
        head = self.head if heads > 1 else 0
        return ((image * heads + head) * queries + query) * keys

    def _transpose_mask(self) -> None:
        """P[k] = mask[query, k] with queries in lanes; queries past the end repeat the last row."""
        lanes, last = self.lanes, self.a.seq - 1

        def block(first: tir.Expr, keys: int, n: int) -> None:
            rows = [tirx.min((self.tile + n) * lanes + r, tir.i32(last)) for r in range(lanes)]
            loaded = [tir.vload_lanes(self.args["M"], self._mask_row(r) + first, lanes, 0, keys) for r in rows]
            for k, vector in enumerate(tir.transpose(loaded, lanes)[:keys]):
                tir.vstore(self.p, vector, self._p(first + k, n), lanes)

        whole, rest = divmod(self.a.seq, lanes)
        for n in range(self.nr):
            if whole:
                with B.serial(whole) as at:
                    block(at * lanes, lanes, n)
            if rest:
                block(tir.i32(whole * lanes), rest, n)

    def _scores(self, largest: tir.Registers) -> None:
        """Fill P with scaled and masked scores and `largest` with their maxima."""
        whole, rest = divmod(self.a.seq, self.lanes)
        if whole:
            with B.serial(whole) as tile:
                for lane in range(0, self.lanes, self.mr):
                    self._score_block(tile, lane, self.mr, largest)
        for lane in range(0, rest, self.mr):
            self._score_block(tir.i32(whole), lane, min(self.mr, rest - lane), largest)

    def _score_block(self, tile: tir.Expr, lane: int, keys: int, largest: tir.Registers) -> None:
        """Scores of `keys` neighbouring keys, the first in lane `lane` of the key tile."""
        sums = tir.Registers(keys * self.nr, self.lanes, fill=0.0)
        with B.serial(self.a.head_dim) as j:
            query = [tir.let(tir.vload(self.args["Q"], self._at(self.tile + n, j), self.lanes)) for n in range(self.nr)]
            for k in range(keys):
                key = tir.let(tir.splat(self.args["K"][self._at(tile, j) + (lane + k)], self.lanes))
                for n in range(self.nr):
                    sums[k * self.nr + n] = sums[k * self.nr + n] + key * query[n]
        for k in range(keys):
            position = tile * self.lanes + (lane + k)
            for n in range(self.nr):
                score = sums[k * self.nr + n] * tir.splat(self.a.scale, self.lanes)
                if self.query_mask:
                    score = score + tir.vload(self.p, self._p(position, n), self.lanes)
                elif self.a.mask_shape is not None:
                    score = score + tir.splat(self.args["M"][self._mask_row(0) + position], self.lanes)
                score = tir.let(score)
                tir.vstore(self.p, score, self._p(position, n), self.lanes)
                largest[n] = tir.vmax(largest[n], score)

    def _exponentials(self, largest: tir.Registers) -> tir.Registers:
        """P[k] = exp(P[k] - largest), and their sums over k."""
        totals = tir.Registers(self.nr, self.lanes, fill=0.0)
        position = 0

        def step(offset: tir.Expr, end: int) -> None:
            nonlocal position
            n = position % self.nr
            value = tir.exp_vec(tir.let(tir.vload(self.p, offset, end) - largest[n]), self.lanes, upper=False)
            tir.vstore(self.p, value, offset, self.lanes)
            totals[n] = totals[n] + value
            position += 1

        each_vector(self.a.seq * self.nr * self.lanes, self.lanes, step, unroll=2 * self.nr)
        return totals

    def _outputs(self, first: int, features: int, inverse: list[tir.Expr]) -> None:
        """Output features first ... first + features - 1 of this head."""
        sums = tir.Registers(features * self.nr, self.lanes, fill=0.0)

        def key(tile: tir.Expr, lane: tir.Expr) -> None:
            position = tile * self.lanes + lane
            weights = [tir.let(tir.vload(self.p, self._p(position, n), self.lanes)) for n in range(self.nr)]
            for m in range(features):
                value = tir.let(tir.splat(self.args["V"][self._at(tile, first + m) + lane], self.lanes))
                for n in range(self.nr):
                    sums[m * self.nr + n] = sums[m * self.nr + n] + value * weights[n]

        whole, rest = divmod(self.a.seq, self.lanes)
        if whole:
            with B.serial(whole) as tile, B.serial(self.lanes) as lane:
                key(tile, lane)
        if rest:
            with B.serial(rest) as lane:
                key(tir.i32(whole), lane)
        for m in range(features):
            for n in range(self.nr):
                at = self._at(self.tile + n, first + m)
                tir.vstore(self.args["Y"], sums[m * self.nr + n] * inverse[n], at, self.lanes)
