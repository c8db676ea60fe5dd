"""A tuning run as a table that fits the terminal: what each task takes now, what failed, how long it will go on."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from sparsetvm.core.results import Event
from sparsetvm.errors import printable
from sparsetvm.report.table import micros

_FRAME = 9  # lines of the view that are no tasks
_LEAST_ROWS = 3
_WORTH_COLOUR = 1.1
_LEVELS, _BARS = "▁▂▃▄▅▆▇█", 24


@dataclass
class _Task:
    """state: "", "searching", or how it ended."""

    name: str
    pattern: str
    sparsity: float
    count: int
    best: float | None = None
    dense: float | None = None
    trials: int = 0
    failed: int = 0
    state: str = ""

    @property
    def weight(self) -> float:
        """Microseconds of the model that it stands for."""
        return self.count * (self.best or self.dense or 0.0)


@dataclass
class TuneView:
    """State of one run, told by its events; rich prints it. clock: seconds, for tests."""

    clock: Callable[[], float] = time.monotonic
    tasks: dict[str, _Task] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    last: str = ""
    current: str = ""
    history: list[float] = field(default_factory=list)
    _log: str = ""
    _seed: int = 0
    _limits: dict[str, float] = field(default_factory=dict)
    _first: tuple[float, float] | None = None
    _begun: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def running(self) -> bool:
        """True once a run has begun to tell what it will do."""
        return bool(self.tasks)

    def apply(self, event: Event) -> None:
        """Take one event in; another thread may be printing."""
        with self._lock:
            self._apply(event)

    def _apply(self, event: Event) -> None:
        data = event.data
        if event.kind == "start" and "plan" in data:
            self._begun = self.clock()
            self._log, self._seed = str(data.get("log", "")), int(data.get("seed", 0))
            self._limits = {name: float(data[name]) for name in ("trials", "seconds", "each") if name in data}
            rows = data["plan"]
            self.tasks = {r["name"]: _Task(r["name"], r["pattern"], r["sparsity"], r["count"]) for r in rows}
            return
        task = self.tasks.get(event.task)
        if task is None:
            return
        self.current = event.task
        task.best, task.dense = data.get("best_us", task.best), data.get("dense_us", task.dense)
        if event.kind == "task_start":
            task.state = "searching"
        elif event.kind == "trial":
            status = str(data.get("status", "ok"))
            self.statuses[status] += 1
            task.trials += 1
            task.failed += status != "ok"
            self.last = f"{event.task}: {event.message}"
        elif event.kind == "task_end":
            task.state = event.message
        if self._first is None and all(known.best and known.dense for known in self.tasks.values()):
            self._first = self.latency()[:2]
        if self._first is not None and (not self.history or self.latency()[0] != self.history[-1]):
            self.history.append(self.latency()[0])

    def latency(self) -> tuple[float, float, int]:
        """Microseconds now and dense, summed over the layers of tasks that have both, and how many tasks that are."""
        known = [task for task in self.tasks.values() if task.best and task.dense]
        now = sum(task.count * (task.best or 0.0) for task in known)
        return now, sum(task.count * (task.dense or 0.0) for task in known), len(known)

    def seconds_left(self) -> float | None:
        """Of the budget, or at most for the trials that may come; None while nothing says."""
        elapsed = self.clock() - self._begun
        if "seconds" in self._limits:
            return max(0.0, self._limits["seconds"] - elapsed)
        done = sum(self.statuses.values())
        if not done:
            return None
        if "trials" in self._limits:
            left = self._limits["trials"] - done
        else:
            open_tasks = [task for task in self.tasks.values() if task.state in ("", "searching")]
            left = sum(max(0.0, self._limits.get("each", 0.0) - task.trials) for task in open_tasks)
        return max(0.0, left * elapsed / done)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(_LEAST_ROWS, (options.height or console.height) - _FRAME)
        with self._lock:
            shown = self._shown(room)
            more = [Text(f"and {len(self.tasks) - len(shown)} more tasks")] if len(shown) < len(self.tasks) else []
            table = self._table(shown, options.max_width)
            bars = options.encoding.startswith("utf")
            group = Group(self._head(), table, *more, *self._foot(options.max_width, bars))
        yield group

    def _head(self) -> Text:
        left = self.seconds_left()
        most = "" if "seconds" in self._limits else "at most "
        eta = "" if left is None else f", {most}{_duration(left)} left"
        trials = sum(self.statuses.values())
        return Text(f"tuning {len(self.tasks)} tasks, {trials} trials in {_duration(self.clock() - self._begun)}{eta}")

    def _table(self, shown: list[_Task], width: int) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
        wide, narrow = width >= 90, width < 60
        columns = ["dense us", "best us", "gain", *([] if narrow else ["trials", "failed"])]
        taken = 74 if wide else 26 if narrow else 56
        table.add_column("task", overflow="ellipsis", no_wrap=True, max_width=max(10, width - taken))
        for title in ["pattern", "zeros", "layers"] if wide else []:
            table.add_column(title, no_wrap=True, justify="left" if title == "pattern" else "right")
        for title in columns:
            table.add_column(title, no_wrap=True, justify="right")
        if not narrow:
            table.add_column("", overflow="ellipsis", no_wrap=True, max_width=18)
        for task in shown:
            gain = task.dense / task.best if task.dense and task.best else None
            about = [printable(task.pattern), f"{100 * task.sparsity:.1f} %", str(task.count)] if wide else []
            style = "bold" if task.name == self.current else "dim" if not task.state else ""
            times = [
                *(micros(us) if us else "" for us in (task.dense, task.best)),
                "" if gain is None else f"{gain:.2f}x",
            ]
            rest = [] if narrow else [str(task.trials or ""), str(task.failed or ""), printable(task.state)]
            cells = [Text(cell) for cell in (printable(task.name), *about, *times, *rest)]
            cells[len(about) + 3].stylize("green" if gain and gain >= _WORTH_COLOUR else "")
            if not narrow:
                cells[-2].stylize("red")
            table.add_row(*cells, style=style)
        return table

    def _shown(self, room: int) -> list[_Task]:
        """Tasks in the model's order; where they are too many, those that take most of its time."""
        if len(self.tasks) <= room:
            return list(self.tasks.values())
        kept = sorted(self.tasks.values(), key=lambda task: -task.weight)[: room - 1]
        return [task for task in self.tasks.values() if task in kept]

    def _foot(self, width: int, bars: bool) -> list[Text]:
        now, dense, known = self.latency()
        lines = []
        if known and now:
            of = "all layers" if known == len(self.tasks) else f"the layers of {known} of {len(self.tasks)} tasks"
            first = f", {_time(self._first[0])} at first" if self._first and self._first[0] > now * 1.005 else ""
            fall = _bars(self.history) if bars else ""
            lines.append(f"{of}: {_time(now)}, dense {_time(dense)}{first}: {dense / now:.2f}x{fall}")
        failures = ", ".join(f"{count} {status}" for status, count in self.statuses.most_common() if status != "ok")
        lines.append(f"failures: {failures or 'none'}")
        lines.append(f"log {printable(self._log)}, seed {self._seed}; Ctrl-C keeps what is measured")
        lines.append(f"last {printable(self.last)}" if self.last else "starting the processes that measure")
        return [_cut(line, width) for line in lines]


def _bars(history: list[float]) -> str:
    """How a time fell, as a row of bars: the first is full, nothing would be empty."""
    if len(history) < 2:
        return ""
    shown = (
        [history[at * (len(history) - 1) // (_BARS - 1)] for at in range(_BARS)] if len(history) > _BARS else history
    )
    return "  " + "".join(_LEVELS[min(7, int(8 * us / history[0]))] for us in shown)


def _cut(line: str, width: int) -> Text:
    text = Text(line, style="dim" if line.startswith(("log ", "last ")) else "")
    text.truncate(max(10, width - 1), overflow="ellipsis")
    return text


def _time(us: float) -> str:
    return f"{us / 1000:.3g} ms" if us >= 1000 else f"{us:.3g} us"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
