"""The stress test of the measurer, in short: scripts/stress_measure.py runs it in full."""

from __future__ import annotations

import pytest
import stress_measure
from stress_measure import EXPECTED, stress


def test_every_trial_has_its_status_and_no_process_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "STRESS_MEASURE_RUN"):  # what the stress test sets is taken back
        monkeypatch.setenv(name, "")
    # No build hangs here, and a good one may take its time on a busy machine.
    monkeypatch.setitem(stress_measure._LIMITS, "compile_timeout", 60.0)
    slow = ("build_hang", "hang", "children", "flood")  # other tests have them
    kinds = [kind for kind in EXPECTED if kind not in slow]
    outcome = stress([name for kind in kinds for name in (kind, "good")])
    assert outcome.misnamed == []
    assert outcome.leaks == []
    assert outcome.sound
