"""What proposes configs. Strategies know no processes, logs or clocks, so they are tested on a table of times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sparsetvm.core.config import Config
from sparsetvm.search.trial import Measured


class Strategy(Protocol):
    """One search of one task."""

    def propose(self, n: int) -> list[Config]:
        """Up to `n` configs to measure next, none proposed or observed before; empty when the space is used up."""
        ...

    def observe(self, results: Sequence[Measured]) -> None:
        """Learn from results, failures included."""
        ...

    def expected_gain(self) -> float | None:
        """Share of the best time that the next batch may save, as predicted; None while nothing can be said."""
        ...
