"""Questions about positions of non-zeros are answered once."""

import subprocess
import sys

import numpy as np

from sparsetvm.analysis import per_pattern as module
from sparsetvm.analysis.per_pattern import per_pattern


def counting(asked):
    @per_pattern
    def count(weight):
        asked.append(weight.shape)
        return int(np.count_nonzero(weight))

    return count


def test_equal_positions_are_asked_about_once_whatever_the_values():
    asked = []
    count, weight = counting(asked), np.eye(3, dtype=np.float32)
    assert [count(weight), count(weight * -2), count(weight[::-1])] == [3, 3, 3]
    assert len(asked) == 2


def test_shape_is_part_of_the_question():
    asked = []
    count, weight = counting(asked), np.ones((2, 6), np.float32)
    assert [count(weight), count(weight.reshape(3, 4))] == [12, 12]
    assert asked == [(2, 6), (3, 4)]


def test_oldest_answers_are_forgotten(monkeypatch):
    monkeypatch.setattr(module, "_REMEMBERED", 2)
    asked = []
    count = counting(asked)
    rows = [np.arange(3)[None] == at for at in range(3)]
    for at in (0, 1, 0, 2, 0, 1):  # 1 is the one not asked for the longest when 2 comes
        assert count(rows[at]) == 1
    assert len(asked) == 4


def test_package_needs_no_scipy_until_a_question_does():
    """It takes longer to import than a small model to inspect."""
    code = "import sys, sparsetvm.api; sys.exit(any(name.split('.')[0] in ('scipy', 'tvm') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
