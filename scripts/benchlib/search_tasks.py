"""The tasks that searches are compared on, and spaces small enough to be measured whole.

The search was tuned on the set "tuned", products and convolutions of ResNet-50: it shows how the search improved, not
how good it is on layers that nobody looked at. For that there is "held-out", made of the tuned set by a rule that was
fixed before any of its tasks was measured, all of them kept:
- task i has m times a and k times b, (a, b) the (i mod 4)-th of (3/4, 3/2), (3/2, 3/4), (5/4, 5/8), (5/8, 5/4);
  of a convolution these are the output and the input channels, and the side of its image is 5/7 of what it was;
- 90 % zeros become 85 and 92 % in turn, 95 % become 93 and 97 % in turn;
- the number of tokens, the window and the kind of pattern stay, so that both sets have the same mixture;
- positions and values are drawn with the CRC-32 of the new name as the seed; no layer has bias or activation.

A template declares thousands of configs for a layer. Here the largest space of a task keeps at most a given number of
them (LARGEST unless told otherwise) and each other one an 18th of that: the knobs with the most values are thinned to
evenly spread ones, the default's among them, until it fits. Unordered knobs keep all values. Spaces that are smaller,
as all of one token, are whole.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Literal, get_args

import msgspec

from benchlib.case import Case, conv_task, matmul_task
from benchlib.conv_suite import convolutions
from benchlib.suites import random_weight, uneven_rows
from sparsetvm.core.config import Config, KnobValue
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import ConvGeometry
from sparsetvm.search.candidates import Candidates, TemplateChoice
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space

TaskSet = Literal["tuned", "held-out"]
TASK_SETS: tuple[TaskSet, ...] = get_args(TaskSet)

LARGEST = 432
_OTHERS = 18  # of what the largest space may have, each other one has a part like this

# m, k, tokens, sparsity, pattern
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
# window, input channels, output channels, side of the image, sparsity
_CONVOLUTIONS = (
    (1, 64, 64, 56, 0.90),
    (3, 64, 64, 56, 0.90),
    (1, 256, 128, 56, 0.95),
    (3, 128, 128, 28, 0.95),
    (1, 1024, 256, 14, 0.95),
)
_FACTORS = (
    (Fraction(3, 4), Fraction(3, 2)),
    (Fraction(3, 2), Fraction(3, 4)),
    (Fraction(5, 4), Fraction(5, 8)),
    (Fraction(5, 8), Fraction(5, 4)),
)
_SIDE = Fraction(5, 7)
_OTHER_SPARSITIES = {0.90: (0.85, 0.92), 0.95: (0.93, 0.97)}


def search_cases(tasks: TaskSet) -> list[Case]:
    """The tasks of a set: products and convolutions of several patterns, with 1 to 3136 columns of X."""
    if tasks == "tuned":
        return [*(_product(*given) for given in _PRODUCTS), *(_of_resnet(*given) for given in _CONVOLUTIONS)]
    changes = _changes()
    products = zip(_PRODUCTS, changes, strict=False)
    convolved = zip(_CONVOLUTIONS, changes[len(_PRODUCTS) :], strict=True)
    return [
        *(_product(_times(m, a), _times(k, b), n, sparsity, kind) for (m, k, n, _, kind), (a, b, sparsity) in products),
        *(
            _convolution(window, _times(c, b), _times(m, a), _times(side, _SIDE), sparsity)
            for (window, c, m, side, _), (a, b, sparsity) in convolved
        ),
    ]


def _changes() -> list[tuple[Fraction, Fraction, float]]:
    """What makes a task of "held-out" from each of "tuned": factors of m and k, the new sparsity."""
    turns = {old: itertools.cycle(new) for old, new in _OTHER_SPARSITIES.items()}
    sparsities = [given[3] for given in _PRODUCTS] + [given[4] for given in _CONVOLUTIONS]
    factors = itertools.cycle(_FACTORS)
    return [(*pair, next(turns[old])) for old, pair in zip(sparsities, factors, strict=False)]


def _times(size: int, factor: Fraction) -> int:
    product = size * factor
    if product.denominator != 1:
        raise ValueError(f"{size} times {factor} is no size")
    return int(product)


def _product(m: int, k: int, n: int, sparsity: float, pattern: str) -> Case:
    name = f"{m}x{k} n={n} s={sparsity:.2f} {pattern}"
    make = partial(uneven_rows, (m, k), sparsity, _seed(name))
    if pattern != "uneven rows":
        make = partial(random_weight, (m, k), sparsity, _seed(name), pattern)
    return Case("search", name, pattern, n, sparsity, partial(matmul_task, name, n, make))


def _convolution(window: int, c: int, m: int, side: int, sparsity: float) -> Case:
    name = _conv_name(window, c, m, side, sparsity)
    conv = ConvGeometry(c, side, side, (window, window), pads=(window // 2,) * 4)
    weight = partial(random_weight, (m, c * window * window), sparsity, _seed(name))
    return Case("search", name, "conv2d", side * side, sparsity, partial(conv_task, name, conv, weight))


def _of_resnet(window: int, c: int, m: int, side: int, sparsity: float) -> Case:
    """The layer as ResNet-50 has it, with its epilogue."""
    name = _conv_name(window, c, m, side, sparsity)

    def task(target: Target) -> Task:
        return next(case for case in convolutions(target, ["resnet50"]) if case.name == name).task(target)

    return Case("search", name, "conv2d", side * side, sparsity, task)


def _conv_name(window: int, c: int, m: int, side: int, sparsity: float) -> str:
    return f"conv2d {window}x{window} {c}->{m} {side}x{side} s={sparsity:.2f}"


def _seed(name: str) -> int:
    return zlib.crc32(name.encode())


def small_candidates(candidates: Candidates, most: int = LARGEST) -> Candidates:
    """The candidates of a task, cut down to `most` in the largest space, as the module's text says."""
    largest = max(candidates.choices, key=lambda choice: choice.space.cardinality)
    return Candidates(
        tuple(_thinned(choice, most if choice is largest else most // _OTHERS) for choice in candidates.choices)
    )


def _thinned(choice: TemplateChoice, most: int) -> TemplateChoice:
    return dataclasses.replace(choice, space=small_space(choice.space, choice.default, most))


def small_space(space: Space, default: Config, most: int) -> Space:
    """A part of `space` with at most `most` configs, if the unordered knobs alone have no more; has `default`."""
    counts = {knob.name: knob.cardinality for knob in space.knobs}
    ordered = [knob.name for knob in space.knobs if isinstance(knob, Ordered)]
    while math.prod(counts.values()) > most:
        longest = max(ordered, key=lambda name: counts[name])
        if counts[longest] == 1:
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
