"""Section "What was gained": times beside dense, and where the kernels stand under the roofline."""

from __future__ import annotations

from collections.abc import Sequence

from sparsetvm.analysis.roofline import Roof, roof
from sparsetvm.report.html.charts import Plot, axis_over, bars
from sparsetvm.report.html.element import Child, Element, el
from sparsetvm.report.html.parts import details, factor, micros, table
from sparsetvm.report.story import Story, TaskStory, clocks_of, target_of

_FLOAT = 4
_BARS = 24


def gained_section(story: Story) -> Element:
    """Bars, the table with the chosen configs, and the roofline."""
    section = el("section", el("h2", "What was gained"), id="gained")
    timed = [task for task in story.tasks if task.best]
    if not timed:
        section.append(el("p", "Nothing has a time yet."))
        return section
    section.append(
        el(
            "p",
            el("span", class_="key ours"), "chosen kernel  ", el("span", class_="key dense"),
            "best dense kernel on the same device. Times of one call of the layer.",
            class_="soft",
        )
    )  # fmt: skip
    ranked = sorted(timed, key=lambda task: -task.count * (task.dense or task.best or 0.0))
    section.append(_bars(ranked[:_BARS]))
    if len(ranked) > _BARS:
        section.append(details(f"{len(ranked) - _BARS} more", _bars(ranked[_BARS:])))
    rows: list[list[Child]] = [
        [
            el("bdi", task.name), str(task.count), micros(task.dense), micros(task.best), factor(task.speedup),
            task.source, el("code", task.config),
        ]
        for task in timed
    ]  # fmt: skip
    columns = ["task", ">layers", ">dense", ">chosen", ">gain", "source", "schedule"]
    section.append(details("All tasks with their schedules", table(columns, rows)))
    section.append(_roofline(story, timed))
    return section


def _bars(tasks: Sequence[TaskStory]) -> Element:
    top = max(max(task.dense or 0.0, task.best or 0.0) for task in tasks)
    rows = []
    for task in tasks:
        layers = f" (x{task.count})" if task.count > 1 else ""
        gain = f", {factor(task.speedup)}" if task.speedup else ""
        rows.append((task.name + layers, (task.best or 0.0) / top, "ours", micros(task.best) + gain))
        if task.dense:
            rows.append(("dense", task.dense / top, "dense", micros(task.dense)))
    return bars(rows)


def _roofline(story: Story, tasks: Sequence[TaskStory]) -> Element:
    """GFLOP/s over FLOP per byte that must be moved; a thin line joins a layer's kernel to its dense one."""
    part = el("div", el("h3", "Roofline"))
    device = tasks[-1].device
    shown = [task for task in tasks if task.device.model == device.model]
    threads = shown[-1].workload.threads
    clocks = clocks_of([record for task in shown for record in task.records])
    mhz = max(clocks, default=None)
    target = story.target or target_of(device, threads)
    limit = roof(target, mhz)
    ours = [_point(task, task.best or 1.0, task.workload.pattern.density) for task in shown]
    dense = [(task, _point(task, task.dense, 1.0)) for task in shown if task.dense]
    points = [*ours, *(point for _, point in dense)]
    heights = [y for _, y in points] + ([limit.gflops] if limit else [])
    plot = Plot(
        axis_over([x for x, _ in points], "FLOP per byte (non-zero weights, activations)", log=True),
        axis_over(heights, "GFLOP/s", log=True), 400, 290,
    )  # fmt: skip
    if limit:
        _draw_roof(plot, limit)
    for task, point in dense:
        plot.line([point, ours[shown.index(task)]], "link")
    plot.dots([p for _, p in dense], "dense", lambda at: f"{dense[at][0].name}, dense: {dense[at][1][1]:.4g} GFLOP/s")
    plot.dots(ours, "ours", lambda at: f"{shown[at].name}: {ours[at][1]:.4g} GFLOP/s, {micros(shown[at].best)}", 4)
    words = el("p", _roof_words(limit, mhz, threads, device.kind), class_="soft")
    part.append(el("div", el("div", plot.element("roofline"), class_="roofline"), words, class_="two"))
    return part


def _point(task: TaskStory, us: float | None, density: float) -> tuple[float, float]:
    """(FLOP per byte, GFLOP/s), counting the operations of non-zeros and 4 bytes for each."""
    work = task.workload
    weights = max(density * work.m * work.k, 1.0)
    operations = 2.0 * weights * work.n
    return operations / (_FLOAT * weights + work.activation_bytes), operations / (us or 1.0) / 1e3


def _draw_roof(plot: Plot, limit: Roof) -> None:
    left, right = plot.x.low, plot.x.high
    ridge = limit.gflops / limit.gbytes
    points = [(right, limit.gflops)]
    if ridge > left:
        points.append((min(ridge, right), min(limit.gflops, right * limit.gbytes)))
        start = max(left, plot.y.low / limit.gbytes)
        points.append((start, start * limit.gbytes))
    else:
        points.append((left, limit.gflops))
    plot.line(points if ridge < right else points[1:], "roof", f"{limit.gflops:.0f} GFLOP/s, {limit.gbytes:.0f} GB/s")


def _roof_words(limit: Roof | None, mhz: float | None, threads: int, kind: str) -> str:
    points = "Filled dots count only the work on non-zeros, rings are the best dense kernels with all of the work. "
    if limit is None:
        return points + "No roof is drawn: the records do not say what the core's clock was."
    roofs = f"The roof: {limit.gflops:.0f} GFLOP/s of float32 FMAs, {limit.gbytes:.0f} GB/s from {limit.source}"
    if kind == "cuda":
        return f"{points}{roofs}, at the highest clock of an H200."
    return (
        f"{points}{roofs}, for {threads} thread{'s' if threads > 1 else ''} at {mhz:.0f} MHz, the clock that the "
        "system named while measuring. A core that boosts beyond it can lie above the roof."
    )
