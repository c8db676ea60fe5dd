"""Strings of a protobuf message: the parser lets invalid UTF-8 through as bytes, so names are checked before use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def invalid_string(message: Any) -> str | None:
    """Name of the first string field, at any depth of a protobuf message, that is no valid UTF-8."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for item in _items(value):
            found = None
            if field.type == field.TYPE_MESSAGE:
                found = invalid_string(item)
            elif not isinstance(item, str):
                found = f"{message.DESCRIPTOR.name}.{field.name}"
            if found:
                return found
    return None


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, str | bytes) or hasattr(value, "ListFields"):
        yield value
    else:
        yield from value
