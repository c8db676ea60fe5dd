"""The user's folders. A user may have none: a service without HOME that no password file knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

NO_HOME = Path("~")  # what stands for the home of a user who has none; never expanded


def state_folder() -> Path:
    """Where state is kept ($XDG_STATE_HOME/sparsetvm on Linux); below NO_HOME when there is no such place."""
    from platformdirs import user_state_path

    return _absolute(lambda: user_state_path("sparsetvm", appauthor=False)) or NO_HOME / "sparsetvm"


def cache_folder() -> Path | None:
    """Where what can be made again is kept ($XDG_CACHE_HOME/sparsetvm on Linux), None when there is no such place."""
    from platformdirs import user_cache_path

    return _absolute(lambda: user_cache_path("sparsetvm"))


def _absolute(find: Callable[[], Path]) -> Path | None:
    try:
        folder = find()
    except RuntimeError:  # platformdirs since 4.5; before it returned "~/..."
        return None
    return folder if folder.is_absolute() else None
