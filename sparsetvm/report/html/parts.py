"""Pieces of a page that several sections use."""

from __future__ import annotations

from collections.abc import Sequence

from sparsetvm.report.html.element import Child, Element, el


def table(columns: Sequence[str], rows: Sequence[Sequence[Child]]) -> Element:
    """A table that scrolls sideways where the screen is narrow; a title that starts with ">" is right-aligned."""
    heads = [el("th", name.removeprefix(">"), class_=_cell_class(name, 0)) for name in columns]
    body = [
        el("tr", *(el("td", cell, class_=_cell_class(columns[at], at)) for at, cell in enumerate(row))) for row in rows
    ]
    inner = el("table", el("thead", el("tr", *heads)), el("tbody", *body))
    return el("div", inner, class_="wide", tabindex="0", role="region", aria_label="table")


def _cell_class(column: str, at: int) -> str:
    return "n" if column.startswith(">") else "name" if at == 0 else "t"


def details(summary: str, *children: Child) -> Element:
    """Something to unfold."""
    return el("details", el("summary", summary), *children)


def card(value: str, what: str) -> Element:
    """One figure with its name."""
    return el("div", el("b", value), el("span", what), class_="card")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def micros(us: float | None) -> str:
    """Microseconds for people: "0.57 us", "123 us", "4.2 ms"."""
    if us is None:
        return "-"
    if us >= 1000:
        return f"{us / 1000:.3g} ms"
    return f"{us:.3g} us"


def factor(speedup: float | None) -> str:
    return "-" if speedup is None else f"{speedup:.2f}x"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
