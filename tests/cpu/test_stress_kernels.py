"""Wrong kernels of real templates, in short: scripts/stress_kernels.py makes a thousand."""

from __future__ import annotations

import pytest
from stress_kernels import make_tasks, stress

from sparsetvm.core.target import cpu_flags, host_target

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")


def test_no_wrong_kernel_passes_and_every_unchanged_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "")  # what the stress test adds is taken back
    chosen = [task for task in make_tasks(host_target(1)) if task.name in ("residual", "one", "pointwise")]
    outcome = stress(chosen, mutants=24)
    assert outcome.wrong >= 24
    assert outcome.passed == []
    assert outcome.rejected_originals == []
