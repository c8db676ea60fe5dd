"""A search space: the product of a template's knobs."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Iterator

import msgspec

from sparsetvm.core.config import Config
from sparsetvm.space.knobs import Choice, Ordered


class Space(msgspec.Struct, frozen=True):
    """All configs of one template for one workload."""

    template: str
    knobs: tuple[Ordered | Choice, ...]

    @property
    def cardinality(self) -> int:
        return math.prod(knob.cardinality for knob in self.knobs)

    @property
    def fingerprint(self) -> str:
        """Digest of the knobs and values: a record is exact only within an equal space."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:12]

    def contains(self, config: Config) -> bool:
        """True when the config assigns exactly these knobs to values that they declare."""
        if config.template != self.template or len(config.knobs) != len(self.knobs):
            return False
        given = dict(config.knobs)
        return all(
            any(type(value) is type(given[knob.name]) and value == given[knob.name] for value in knob.values)
            for knob in self.knobs
            if knob.name in given
        ) and given.keys() == {knob.name for knob in self.knobs}

    def sample(self, rng: random.Random) -> Config:
        """A uniformly random config."""
        return Config.of(self.template, **{knob.name: knob.sample(rng) for knob in self.knobs})

    def neighbours(self, config: Config) -> Iterator[Config]:
        """Configs that differ in one knob by one step."""
        for knob in self.knobs:
            for value in knob.neighbours(config[knob.name]):
                yield config.replace(**{knob.name: value})

    def __iter__(self) -> Iterator[Config]:
        for values in itertools.product(*(knob.values for knob in self.knobs)):
            yield Config.of(self.template, **{knob.name: value for knob, value in zip(self.knobs, values, strict=True)})
