"""All configs of a space of moderate size, described once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsetvm.core.config import Config
from sparsetvm.search.cost_model import Encoded


class WholeSpace:
    """configs: in the order of the space; encoded: their features."""

    def __init__(self, configs: Sequence[Config], encoded: Encoded) -> None:
        self.configs = configs
        self.encoded = encoded
        self._names = sorted({name for config in configs for name, _ in config.knobs})
        self._codes: dict[object, int] = {}
        self._matrix = np.array([self._row(config) for config in configs], np.int32)

    def differing(self, config: Config) -> np.ndarray:
        """In how many knobs each config differs from the given one; the template counts as a knob."""
        counts: np.ndarray = (self._matrix != np.array(self._row(config), np.int32)).sum(1)
        return counts

    def _row(self, config: Config) -> list[int]:
        """A number for the template and for the value of each knob, 0 for knobs that the template lacks."""
        knobs = dict(config.knobs)
        known = self._codes
        row = [known.setdefault(config.template, len(known) + 1)]
        return row + [known.setdefault((n, knobs[n]), len(known) + 1) if n in knobs else 0 for n in self._names]
