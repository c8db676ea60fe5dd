"""Names from a model file are hostile input: they are kept as they are inside and escaped in messages."""

from __future__ import annotations

from collections.abc import Container

_LIMIT = 160


def display_name(name: str, limit: int = _LIMIT) -> str:
    """`name` for a message or report: control and bidirectional characters escaped, cut in the middle at `limit`."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)
    if len(shown) <= limit:
        return shown
    half = (limit - 3) // 2
    return f"{shown[:half]}...{shown[-half:]}"


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


def unique_name(stem: str, taken: Container[str]) -> str:
    """`stem`, or `stem.1`, `stem.2`, ... when it is taken."""
    name, count = stem, 0
    while name in taken:
        count += 1
        name = f"{stem}.{count}"
    return name
