"""Puts this folder on the import path, so that tests of all folders share `models` and `graph_eval`.

Tests do not see the records that the package ships: what they find must not depend on the machines that were measured.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from sparsetvm.log import location

SHIPPED = location.shipped_logs


@pytest.fixture(autouse=True, scope="session")
def _no_shipped_records() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(location, "shipped_logs", lambda: ())
        yield


def pytest_configure() -> None:
    """Ctrl-C is tested; a shell that starts the tests in the background has switched it off for them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
