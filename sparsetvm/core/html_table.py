"""Results as HTML for notebooks: what a cell shows when a report is its last value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import msgspec

from sparsetvm.errors import printable

_STYLE = "text-align:left"


def html_of(result: msgspec.Struct) -> str:
    """Single values as one table, each list of objects as another; all text is escaped."""
    fields = {name: getattr(result, name) for name in result.__struct_fields__ if name != "schema"}
    tables = {name: value for name, value in fields.items() if _is_rows(value)}
    single = [(name, _text(value)) for name, value in fields.items() if name not in tables and value not in ([], {})]
    parts = [f"<b>{escape(type(result).__name__)}</b>", _table([], single)]
    for name, rows in tables.items():
        objects = [msgspec.to_builtins(row) for row in rows]
        columns = list(dict.fromkeys(key for row in objects for key in row))
        cells = [[_text(row.get(key)) for key in columns] for row in objects]
        parts.append(f"<p>{escape(name)}</p>{_table(columns, cells)}")
    return "<div>" + "".join(parts) + "</div>"


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], (msgspec.Struct, Mapping))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th style="{_STYLE}">{escape(name)}</th>' for name in columns)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_STYLE}">{escape(cell)}</td>' for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def _text(value: Any) -> str:
    """One value for a cell; figures with four digits."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, msgspec.Struct):
        value = msgspec.to_builtins(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return printable(str(value)).replace("\n", "\\n")
