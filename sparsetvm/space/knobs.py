"""Knobs: small typed classes that answer default, sample, neighbours, encoding for the cost model, cardinality.

The shape of the interface follows Helion's config fragments.
"""

from __future__ import annotations

import math
import random

import msgspec

from sparsetvm.core.config import KnobValue


class Knob(msgspec.Struct, frozen=True, tag_field="kind"):
    """A named choice. Values are listed in an order in which neighbours are alike."""

    name: str
    values: tuple[KnobValue, ...]

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) != len(self.values):
            raise ValueError(f"knob '{self.name}' needs distinct values, got {self.values}")

    @property
    def cardinality(self) -> int:
        return len(self.values)

    def sample(self, rng: random.Random) -> KnobValue:
        """A uniformly random value."""
        return rng.choice(self.values)

    def neighbours(self, value: KnobValue) -> tuple[KnobValue, ...]:
        """Values one step away."""
        raise TypeError(type(self).__name__)

    def encode(self, value: KnobValue) -> float:
        """A number for the cost model."""
        raise TypeError(type(self).__name__)


class Ordered(Knob, frozen=True, tag="ordered"):
    """An integer knob whose order means something (a tile size): neighbours are the values next to it."""

    def neighbours(self, value: KnobValue) -> tuple[KnobValue, ...]:
        at = self.values.index(value)
        return self.values[max(at - 1, 0) : at] + self.values[at + 1 : at + 2]

    def encode(self, value: KnobValue) -> float:
        return math.log2(1 + float(value))


class Choice(Knob, frozen=True, tag="choice"):
    """An unordered knob (an algorithm): every other value is a neighbour."""

    def neighbours(self, value: KnobValue) -> tuple[KnobValue, ...]:
        return tuple(v for v in self.values if v != value)

    def encode(self, value: KnobValue) -> float:
        return float(self.values.index(value))
