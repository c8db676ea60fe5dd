"""HTML and SVG as trees of elements: text can never become markup, because nothing here concatenates markup.

Names in a report come from models and logs, which are hostile: characters that do not print are escaped.
"""

from __future__ import annotations

from xml.etree import ElementTree

from sparsetvm.errors import printable

Element = ElementTree.Element
Child = str | int | float | Element | None


def el(tag: str, *children: Child, **attributes: str | float) -> Element:
    """An element. Children are text or elements, None is left out; `class_` and `stroke_width` lose or change their
    underscores.
    """
    element = ElementTree.Element(tag, {_attribute(name): printable(str(value)) for name, value in attributes.items()})
    for child in children:
        if isinstance(child, ElementTree.Element):
            element.append(child)
        elif child is not None:
            _add_text(element, printable(str(child)))
    return element


def render(page: Element) -> bytes:
    """The document, UTF-8."""
    document: bytes = ElementTree.tostring(page, encoding="utf-8", method="html")
    return b"<!DOCTYPE html>\n" + document + b"\n"


def _attribute(name: str) -> str:
    return name.rstrip("_").replace("_", "-") if name != "viewBox" else name


def _add_text(element: Element, text: str) -> None:
    if len(element):
        element[-1].tail = (element[-1].tail or "") + text
    else:
        element.text = (element.text or "") + text
