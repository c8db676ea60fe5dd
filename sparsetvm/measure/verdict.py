"""How the answers of a candidate are judged, wherever it ran: against every reference, the worst of them counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sparsetvm.measure.protocol import Reply
from sparsetvm.measure.reference import Reference


def check_all(references: Sequence[Reference], check: Callable[[Reference], Reply]) -> Reply:
    """The first failure, else the largest error. The first reference comes last: its inputs stay in the buffers."""
    worst = Reply("ok", error=0.0)
    for reference in reversed(references):
        verdict = check(reference)
        if verdict.status != "ok":
            return verdict
        worst = max(worst, verdict, key=lambda reply: reply.error or 0.0)
    return worst


def judge(reference: Reference, y: np.ndarray, tolerance: float) -> Reply:
    """Whether the physical output `y` is right, to the relative L2 error that the template may have."""
    fault = reference.fault(y, tolerance)
    if fault:
        return Reply("wrong_answer", message=fault)
    error = reference.error(y)
    if not error <= tolerance:
        return Reply("wrong_answer", error=error, message=f"relative L2 error {error:.2e} > {tolerance:.0e}")
    return Reply("ok", error=error)
