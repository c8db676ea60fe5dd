"""Names from a model file are hostile input: they are kept as they are inside and escaped in messages."""

from __future__ import annotations

from collections.abc import Container

from sparsetvm.errors import printable

_LIMIT = 160


def display_name(name: str, limit: int = _LIMIT) -> str:
    """`name` for a message or report: control and bidirectional characters escaped, cut in the middle at `limit`."""
    return printable(name, limit)


def words(text: str) -> frozenset[str]:
    """The set of names in a text, separated by white space."""
    return frozenset(text.split())


def display_names(names: list[str], limit: int = 6) -> str:
    """The first names of a list, and how many more there are."""
    shown = ", ".join(display_name(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def display_shape(shape: tuple[int, ...]) -> str:
    """A shape as the command line writes it, e.g. "1x3x224x224"; "scalar" for no dimensions."""
    return "x".join(str(d) for d in shape) if shape else "scalar"


class UniqueNames:
    """`stem`, or `stem.1`, `stem.2`, ... when it is taken: in one of the containers given, or given out before.

    A file may hold a hundred thousand equal names: each is found without trying all those before it.
    """

    def __init__(self, *taken: Container[str]) -> None:
        self._taken = taken
        self._counts: dict[str, int] = {}

    def __call__(self, stem: str) -> str:
        name, count = stem, self._counts.get(stem, 0)
        if count:
            name = f"{stem}.{count}"
        while name in self._counts or any(name in taken for taken in self._taken):
            count += 1
            name = f"{stem}.{count}"
        self._counts[stem] = count
        self._counts.setdefault(name, 0)
        return name

    def give_back(self, name: str) -> None:
        """Let the name that was given out last be given out again."""
        self._counts.pop(name, None)
