"""Section "What was tried": best-so-far curves, failures, and what the cost model learned."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from sparsetvm.core.record import Record
from sparsetvm.report.html.charts import Axis, Plot, axis_over, bars
from sparsetvm.report.html.element import Child, Element, el
from sparsetvm.report.html.parts import count, details, factor, micros, percent, table
from sparsetvm.report.learned import Learned
from sparsetvm.report.story import Story, TaskStory
from sparsetvm.schedules.base import ignores_zeros

_CURVES = 12  # shown at once; the others are folded
_MOST_CURVES = 120
_FEATURES = 15
_MESSAGES = 3
_DOTS = 400


def tried_section(story: Story, learned: Learned) -> Element:
    """Curves, failures and the cost model; one sentence when the log holds final results only."""
    section = el("section", el("h2", "What was tried"), id="tried")
    searched = [task for task in story.tasks if task.trials]
    if not searched:
        section.append(
            el("p", "These records hold results of final rounds only: the trials of the search are not among them.")
        )
        return section
    trials = sum(len(task.trials) for task in searched)
    section.append(
        el(
            "p",
            f"{count(trials, 'trial')} of {count(len(searched), 'task')}. The line is the best time so far, the dashed "
            "one the best dense trial; dots are trials, crosses are trials that failed. Times are of the search: the "
            "final round times the best ones again, side by side.",
            class_="soft",
        )
    )
    ranked = sorted(searched, key=lambda task: -task.count * (task.dense or task.best or 0.0))
    section.append(el("div", *map(_curve, ranked[:_CURVES]), class_="grid-of"))
    if len(ranked) > _CURVES:
        more = ranked[_CURVES:_MOST_CURVES]
        section.append(
            details(f"{len(more)} more tasks, which take less time", el("div", *map(_curve, more), class_="grid-of"))
        )
    section.append(_failures(searched))
    section.append(_model(learned))
    return section


def _curve(task: TaskStory) -> Element:
    """Best time so far over the trials of one task."""
    trials = task.trials
    timed = [(at, record.best_us) for at, record in enumerate(trials, 1) if record.status == "ok"]
    of_dense = [us for at, us in timed if ignores_zeros(trials[at - 1].config.template)]
    dense = min(of_dense, default=None)
    plot = Plot(
        Axis(1, max(2, len(trials)), False, "trial", whole=True),
        axis_over([us for _, us in timed], "us", log=True), height=190,
    )  # fmt: skip
    if dense:
        plot.line([(1, dense), (max(2, len(trials)), dense)], "dense", f"best dense trial {micros(dense)}")
    shown = timed[:: max(1, len(timed) // _DOTS)]
    plot.dots(shown, "trial", lambda at: _says(trials[shown[at][0] - 1]), 2)
    plot.line(_steps(timed, len(trials)), "ours", f"best {micros(min((us for _, us in timed), default=None))}")
    failed = [at for at, record in enumerate(trials, 1) if record.status != "ok"][:_DOTS]
    plot.marks(failed, lambda at: _says(trials[failed[at] - 1]))
    words = f" {factor(task.speedup)} over dense, {count(len(trials), 'trial')}" + (
        f", {len(failed)} failed" if failed else ""
    )
    return el(
        "figure",
        plot.element(f"best time of {task.name} by trial"),
        el("figcaption", el("b", el("bdi", task.name)), words),
    )


def _steps(timed: Sequence[tuple[int, float]], trials: int) -> list[tuple[float, float]]:
    """Corners of the best-so-far line."""
    points: list[tuple[float, float]] = []
    best = float("inf")
    for at, us in timed:
        if us < best:
            points += [(at, best), (at, us)] if points else [(at, us)]
            best = us
    return [*points, (trials, best)] if points else []


def _says(record: Record) -> str:
    time = micros(record.best_us) if record.status == "ok" else f"{record.status}: {record.message}"
    return f"{time}\n{record.config}"


def _failures(tasks: Sequence[TaskStory]) -> Element:
    statuses: Counter[str] = Counter()
    messages: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for task in tasks:
        statuses += task.statuses
        for record in task.trials:
            if record.status != "ok" and record.message:
                messages[record.status][record.message] += 1
    failed = sum(statuses.values()) - statuses["ok"]
    part = el("div", el("h3", "Failures by kind"))
    if not failed:
        part.append(el("p", f"None: all {statuses['ok']} trials were built, gave the right answer and were timed."))
        return part
    top = max(statuses.values())
    rows = [
        (status, number / top, "ours" if status == "ok" else "warn", f"{number}")
        for status, number in statuses.most_common()
    ]
    part.append(bars(rows))
    lines: list[list[Child]] = [
        [status, el("code", message), str(number)]
        for status, found in sorted(messages.items())
        for message, number in found.most_common(_MESSAGES)
    ]
    if lines:
        part.append(details("What they said", table(["status", "message", ">times"], lines)))
    return part


def _model(learned: Learned) -> Element:
    part = el("div", el("h3", "What the cost model learned"))
    if not learned.tasks:
        part.append(el("p", "No task has enough trials to train it.", class_="soft"))
        return part
    correlation = "" if learned.correlation is None else f" Their ranks correlate at {learned.correlation:.2f} (mean)."
    part.append(
        el(
            "p",
            f"XGBoost models of {count(learned.tasks, 'task')}, trained again for this report on the trials in their "
            f"order: each time is predicted by a model that has seen only earlier trials of its task.{correlation}",
            class_="soft",
        )
    )
    both = el("div", class_="two")
    if learned.points:
        both.append(_predictions(learned.points))
    if learned.importance:
        shown = list(learned.importance.items())[:_FEATURES]
        top = shown[0][1] or 1.0
        chart = bars([(name, share / top, "ours", percent(share)) for name, share in shown])
        caption = "Feature importance: share of the total gain of all splits, mean over tasks; knobs by their names."
        both.append(el("figure", chart, el("figcaption", caption)))
    part.append(both)
    return part


def _predictions(points: Sequence[tuple[float, float]]) -> Element:
    flat = [value for point in points for value in point]
    low, high = min(flat) / 1.1, max(flat) * 1.1
    plot = Plot(Axis(low, high, True, "measured, over the task's best"), Axis(low, high, True, "predicted"), height=300)
    plot.line([(low, low), (high, high)], "dense", "predicted exactly")
    shown = points[:: max(1, len(points) // _DOTS)]
    plot.dots(
        [(measured, predicted) for predicted, measured in shown],
        "ours",
        lambda at: f"predicted {shown[at][0]:.2f}, measured {shown[at][1]:.2f} times the best",
        2.5,
    )
    return el(
        "figure", plot.element("predicted against measured times"), el("figcaption", "Predicted against measured.")
    )
