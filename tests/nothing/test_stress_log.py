"""The stress test of the log, in short: scripts/stress_log.py runs it in full."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from stress_log import stress, without_locks


@pytest.mark.parametrize("locks", [True, False])
def test_killed_writers_lose_nothing_that_was_acknowledged(
    tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", fcntl.flock)  # what is patched next is taken back
    if not locks:
        without_locks()
    outcome = stress(tmp_path / "cpu.jsonl", appends=300, writers=4)
    assert outcome.acknowledged >= 300
    assert outcome.lost == 0
    assert outcome.passed
    assert len(list(tmp_path.glob("*.jsonl"))) == 1 or not locks
