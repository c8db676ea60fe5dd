"""Text that comes from models and logs, made safe to show: names in them are hostile input."""

from __future__ import annotations


def plain(text: str) -> str:
    """`text` with what does not print (terminal sequences, changes of direction) escaped; newlines and tabs stay.

    >>> plain("conv\\u202e1")
    'conv\\\\u202e1'
    """
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
