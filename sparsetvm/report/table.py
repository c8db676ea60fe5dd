"""Tables of at most 100 columns, and how figures are written in them."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsetvm.errors import printable
from sparsetvm.frontend.names import display_name

COLUMNS = 100


def console() -> Console:
    """stdout, 100 columns at most; plain text when it is no terminal (rich obeys NO_COLOR)."""
    out = Console(soft_wrap=False, highlight=False)
    return out if out.is_terminal and out.width <= COLUMNS else Console(width=COLUMNS, soft_wrap=False, highlight=False)


def say(out: Console, text: str) -> None:
    """A line of text below a table; control characters of names cannot reach the terminal."""
    out.print(Text(printable(text)), soft_wrap=True)


_BETWEEN = 2  # columns of the terminal between those of a table
_MAX_CELL = 160  # a name of ten thousand characters would fill pages
_MAX_WIDTH = {"config": 42, "workload": 29}  # what may be cut so that the rest fits


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, fold: Sequence[str] = ()) -> Table:
    """A table; a column whose title starts with ">" is right-aligned, the columns in `fold` wrap, others are cut.

    Where the terminal is too narrow, names wrap and words are cut: figures stay whole.
    """
    rows = [[display_name(cell, _MAX_CELL) for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for title, width in zip(columns, _widths(columns, rows, fold), strict=True):
        name = title.removeprefix(">")
        table.add_column(
            Text(name),  # no markup: in "n:m:2:4" a plain string would have an emoji
            width=width,
            justify="right" if title.startswith(">") else "left",
            overflow="fold" if name in fold else "ellipsis",
            no_wrap=name not in fold,
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], fold: Sequence[str]) -> list[int]:
    """Columns as wide as what is in them; too wide a table takes from names first, then from words, then again."""
    names = [title.removeprefix(">") for title in columns]
    widths = [
        min(_MAX_WIDTH.get(name, _MAX_CELL), max(cell_len(text) for text in (name, *(row[at] for row in rows))))
        for at, name in enumerate(names)
    ]
    folded = [at for at, name in enumerate(names) if name in fold]
    words = [at for at, title in enumerate(columns) if not title.startswith(">") and at not in folded]
    excess = sum(widths) + _BETWEEN * (len(widths) - 1) - console().width
    for least, among in ((14, folded), (12, words), (8, words), (8, folded), (4, [*folded, *words])):
        while excess > 0 and (widest := max(among, key=widths.__getitem__, default=None)) is not None:
            if widths[widest] <= least:
                break
            widths[widest] -= 1
            excess -= 1
    return widths


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def factor(speedup: float | None) -> str:
    return "-" if speedup is None else f"{speedup:.2f}x"


def micros(us: float | None) -> str:
    """Three digits and more: 0.14, 3.73, 812.0."""
    return "-" if us is None else f"{us:.1f}" if us >= 10 else f"{us:.2f}"
