"""Progress of long calls, on stderr: one plain line per event, or a live line under the finished ones on a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

from sparsetvm.core.results import Event, Progress
from sparsetvm.errors import printable
from sparsetvm.frontend.names import display_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_MAX_LINE = 2000


def describe(event: Event) -> str:
    """One line of text for an event; the message comes first, then the data that it does not already say."""
    parts = [event.message] if event.message else []
    if event.kind != "warning":  # its message says it all
        parts += [
            f"{key}={_number(value)}" for key, value in event.data.items() if isinstance(value, (str, int, float))
        ]
    subject = f"{display_name(event.task)}: " if event.task else ""
    return printable(f"[{event.kind.replace('_', ' ')}] {subject}{' '.join(parts)}".rstrip(), _MAX_LINE)


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class ProgressContext(Protocol):
    """Called with each event, inside a `with` block."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LineProgress:
    """One line per event, no ANSI; what goes into a file or a CI log.

    Without `verbose`, rounds and ordinary trials are left out.

    A trial is not ordinary when it fails or improves the task's best time ("best_us" in its data).
    """

    def __init__(self, stream: TextIO, verbose: bool) -> None:
        self._stream = stream
        self._verbose = verbose
        self._best: dict[str, float] = {}

    def __enter__(self) -> LineProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()

    def __call__(self, event: Event) -> None:
        if self._verbose or event.kind not in ("trial", "round") or self._is_news(event):
            self._stream.write(describe(event) + "\n")
            self._stream.flush()

    def _is_news(self, event: Event) -> bool:
        if event.kind != "trial":
            return False
        best = event.data.get("best_us")
        if isinstance(best, (int, float)) and best < self._best.get(event.task, float("inf")):
            self._best[event.task] = float(best)
            return True
        return bool(event.data.get("status", "ok") != "ok")


class LiveProgress:
    """A spinner with the running step, or a table while a tune runs; notes and what failed stay above it."""

    def __init__(self, console: Console, verbose: bool) -> None:
        from rich.live import Live
        from rich.spinner import Spinner

        from sparsetvm.report.tune_view import TuneView

        self._console = console
        self._verbose = verbose
        self._view = TuneView()
        self._spinner = Spinner("dots", text="starting")
        self._live = Live(self._spinner, console=console, refresh_per_second=4, transient=True)
        self._begun = time.monotonic()

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        self._view.apply(event)
        text = describe(event)
        tuning = self._view.running and event.kind not in ("compile", "end")
        hidden = ("trial", "round", "task_start", "end", *(("start", "task_end") if tuning else ()))
        if self._verbose or event.kind not in hidden:
            self._console.print(text, markup=False, highlight=False)
        if event.kind == "end":
            return
        if tuning:
            self._live.update(self._view)
        else:
            self._spinner.update(text=self._one_line(f"{time.monotonic() - self._begun:4.0f} s  {text}"))
            self._live.update(self._spinner)

    def _one_line(self, text: str) -> Text:
        """The text cut to the width of the terminal, beside the spinner."""
        from rich.text import Text

        line = Text(text)
        line.truncate(max(10, self._console.width - 4), overflow="ellipsis")
        return line


class NoProgress:
    """`-q`."""

    def __enter__(self) -> NoProgress:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, event: Event) -> None:
        return None


def make_progress(*, quiet: bool = False, verbose: bool = False, stream: TextIO | None = None) -> ProgressContext:
    """The progress for this process's stderr: a context manager that is called with each event."""
    stream = sys.stderr if stream is None else stream
    if quiet:
        return NoProgress()
    if not stream.isatty():
        return LineProgress(stream, verbose)
    from rich.console import Console

    return LiveProgress(Console(file=stream), verbose)
