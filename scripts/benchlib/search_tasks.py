"""The tasks that searches are compared on, and spaces small enough to be measured whole.

A template declares thousands of configs for a layer. Here the largest space of a task keeps at most 432 of them and
each other one 24: the knobs with the most values are thinned to evenly spread ones, the default's among them, until it
fits. Unordered knobs keep all values. Spaces that are smaller, as all of one token, are whole.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence
from functools import partial

import msgspec

from benchlib.case import Case, matmul_task
from benchlib.conv_suite import convolutions
from benchlib.suites import random_weight, uneven_rows
from sparsetvm.core.config import Config, KnobValue
from sparsetvm.core.target import Target
from sparsetvm.search.candidates import Candidates, TemplateChoice
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

_LARGEST, _OTHERS = 432, 24
_PRODUCTS = (
    (1024, 1024, 1, 0.90, "unstructured"),
    (2048, 512, 1, 0.95, "block:4x1"),
    (512, 512, 16, 0.90, "unstructured"),
    (512, 512, 16, 0.95, "uneven rows"),
    (512, 512, 128, 0.90, "unstructured"),
    (512, 512, 128, 0.95, "unstructured"),
    (512, 512, 128, 0.90, "uneven rows"),
    (512, 512, 128, 0.95, "block:4x1"),
    (256, 512, 784, 0.95, "unstructured"),
)
_CONVOLUTIONS = (
    "conv2d 1x1 64->64 56x56 s=0.90",
    "conv2d 3x3 64->64 56x56 s=0.90",
    "conv2d 1x1 256->128 56x56 s=0.95",
    "conv2d 3x3 128->128 28x28 s=0.95",
    "conv2d 1x1 1024->256 14x14 s=0.95",
)


def search_cases(target: Target) -> list[Case]:
    """Products and convolutions of several patterns, with 1 to 3136 columns of X."""
    convolution = {case.name: case for case in convolutions(target, ["resnet50"])}
    return [*(_product(*given) for given in _PRODUCTS), *(convolution[name] for name in _CONVOLUTIONS)]


def _product(m: int, k: int, n: int, sparsity: float, pattern: str) -> Case:
    name = f"{m}x{k} n={n} s={sparsity:.2f} {pattern}"
    seed = zlib.crc32(name.encode())
    make = partial(uneven_rows, (m, k), sparsity, seed)
    if pattern != "uneven rows":
        make = partial(random_weight, (m, k), sparsity, seed, pattern)
    return Case("search", name, pattern, n, sparsity, partial(matmul_task, name, n, make))


def small_candidates(candidates: Candidates) -> Candidates:
    """The candidates of a task, cut down to what the module's text says."""
    largest = max(candidates.choices, key=lambda choice: choice.space.cardinality)
    return Candidates(
        tuple(_thinned(choice, _LARGEST if choice is largest else _OTHERS) for choice in candidates.choices)
    )


def _thinned(choice: TemplateChoice, most: int) -> TemplateChoice:
    return dataclasses.replace(choice, space=small_space(choice.space, choice.default, most))


def small_space(space: Space, default: Config, most: int) -> Space:
    """A part of `space` with at most `most` configs, if ordered knobs of two values each allow that; has `default`."""
    counts = {knob.name: knob.cardinality for knob in space.knobs}
    ordered = [knob.name for knob in space.knobs if isinstance(knob, Ordered)]
    while math.prod(counts.values()) > most:
        longest = max(ordered, key=lambda name: counts[name])
        if counts[longest] <= 2:
            break
        counts[longest] -= 1
    knobs = tuple(
        msgspec.structs.replace(knob, values=spread(knob.values, counts[knob.name], default[knob.name]))
        for knob in space.knobs
    )
    return Space(space.template, knobs)


def spread(values: Sequence[KnobValue], count: int, kept: KnobValue) -> tuple[KnobValue, ...]:
    """`count` of the values in their order, evenly spread, `kept` among them in the place of its nearest neighbour."""
    last = len(values) - 1
    chosen = [round(i * last / max(count - 1, 1)) for i in range(count)]
    at = values.index(kept)
    if at not in chosen:
        chosen[min(range(count), key=lambda i: abs(chosen[i] - at))] = at
    return tuple(values[i] for i in sorted(chosen))
