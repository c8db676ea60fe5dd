"""Tables of at most 100 columns, and how figures are written in them."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
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


_NAME_WIDTH = 14
_MAX_CELL = 160  # a name of ten thousand characters would fill pages
_MAX_WIDTH = {"config": 42, "workload": 29}  # what may be cut so that the rest fits


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, fold: Sequence[str] = ()) -> Table:
    """A table; a column whose title starts with ">" is right-aligned, the columns in `fold` wrap, others are cut."""
    rows = [[display_name(cell, _MAX_CELL) for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for title in columns:
        name = title.removeprefix(">")
        longest = max((len(row[len(table.columns)]) for row in rows), default=0)
        table.add_column(
            Text(name),  # no markup: in "n:m:2:4" a plain string would have an emoji
            # Names may wrap but must not vanish when the other columns are wide.
            min_width=min(longest, _NAME_WIDTH) if name in fold else longest if title.startswith(">") else None,
            max_width=_MAX_WIDTH.get(name),
            justify="right" if title.startswith(">") else "left",
            overflow="fold" if name in fold else "ellipsis",
            no_wrap=name not in fold,
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def factor(speedup: float | None) -> str:
    return "-" if speedup is None else f"{speedup:.2f}x"


def micros(us: float | None) -> str:
    """Three digits and more: 0.14, 3.73, 812.0."""
    return "-" if us is None else f"{us:.1f}" if us >= 10 else f"{us:.2f}"
