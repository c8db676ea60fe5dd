"""Uniform random search without replacement: the yardstick of every other strategy."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from sparsetvm.core.config import Config
from sparsetvm.search.candidates import Candidates
from sparsetvm.search.trial import Measured

_TRIES_PER_CONFIG = 50


class RandomSearch:
    """Proposes uniformly random unseen configs. `skip` are configs never to be proposed (known failures)."""

    def __init__(self, candidates: Candidates, rng: random.Random, skip: Iterable[Config] = ()) -> None:
        self._candidates = candidates
        self._rng = rng
        self._seen: set[Config] = set(skip)

    def propose(self, n: int) -> list[Config]:
        found = draw_unseen(self._candidates, self._seen, self._rng, n)
        self._seen.update(found)
        return found

    def observe(self, results: Sequence[Measured]) -> None:
        self._seen.update(result.config for result in results)

    def expected_gain(self) -> float | None:
        return None


def draw_unseen(candidates: Candidates, seen: set[Config], rng: random.Random, n: int) -> list[Config]:
    """Up to `n` distinct random configs outside `seen`; the last few of a space are enumerated, not guessed."""
    found: dict[Config, None] = {}
    for _ in range(_TRIES_PER_CONFIG * n):
        if len(found) >= n:
            break
        config = candidates.sample(rng)
        if config not in seen:
            found[config] = None
    if len(found) < n:
        rest = candidates.unseen(seen | set(found), n - len(found))
        found.update(dict.fromkeys(rest))
    return list(found)
