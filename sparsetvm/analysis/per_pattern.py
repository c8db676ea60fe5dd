"""Questions about where the non-zeros of a weight are, each answered once."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from sparsetvm.core.pattern import pattern_digest

_Answer = TypeVar("_Answer")
_REMEMBERED = 512  # answers of one question; passes and reports ask about the layers of one model several times


def per_pattern(question: Callable[[np.ndarray], _Answer]) -> Callable[[np.ndarray], _Answer]:
    """`question(weight)`, remembered by the positions of the non-zeros, on which alone its answer may depend.

    The same object is given to all who ask: it must not change.
    """
    known: OrderedDict[str, _Answer] = OrderedDict()

    @functools.wraps(question)
    def ask(weight: np.ndarray) -> _Answer:
        digest = pattern_digest(weight)
        answer = known.pop(digest) if digest in known else question(weight)
        known[digest] = answer  # last again
        if len(known) > _REMEMBERED:
            known.popitem(last=False)
        return answer

    return ask
