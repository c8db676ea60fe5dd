"""HTML and SVG as trees of elements: text can never become markup, because nothing here concatenates markup.

Names in a report come from models and logs, which are hostile: characters that are invisible, or that change the
direction of what follows, are shown by their code.
"""

from __future__ import annotations

import unicodedata
from xml.etree import ElementTree

Element = ElementTree.Element
Child = str | int | float | Element | None
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def el(tag: str, *children: Child, **attributes: str | float) -> Element:
    """An element. Children are text or elements, None is left out; `class_` and `stroke_width` lose or change their
    underscores.
    """
    element = ElementTree.Element(tag, {_attribute(name): plain(str(value)) for name, value in attributes.items()})
    for child in children:
        if isinstance(child, ElementTree.Element):
            element.append(child)
        elif child is not None:
            _add_text(element, plain(str(child)))
    return element


def plain(text: str) -> str:
    """`text` with its invisible characters written as \\uXXXX; newlines and tabs stay.

    >>> plain("conv\\u202e1")
    'conv\\\\u202e1'
    """
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _HIDDEN else _code(c) for c in text)


def render(page: Element) -> bytes:
    """The document, UTF-8."""
    document: bytes = ElementTree.tostring(page, encoding="utf-8", method="html")
    return b"<!DOCTYPE html>\n" + document + b"\n"


def _attribute(name: str) -> str:
    return name.rstrip("_").replace("_", "-") if name != "viewBox" else name


def _code(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def _add_text(element: Element, text: str) -> None:
    if len(element):
        element[-1].tail = (element[-1].tail or "") + text
    else:
        element.text = (element.text or "") + text
