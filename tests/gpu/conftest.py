"""Everything here needs a GPU; without one each test says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsetvm.core.target import parse_target
from sparsetvm.errors import SparseTvmError

HERE = Path(__file__).parent


def _why_not() -> str:
    try:
        parse_target("cuda")
    except SparseTvmError as problem:
        return f"needs an NVIDIA GPU: {problem.message}"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    reason = _why_not() if mine else ""
    for item in mine:
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
