"""Section "What was found": the layers, their patterns and pictures of their weights."""

from __future__ import annotations

from sparsetvm.report.html.element import Child, Element, el
from sparsetvm.report.html.parts import details, percent, table
from sparsetvm.report.html.picture import corner_picture, png_url, whole_picture
from sparsetvm.report.story import Story, TaskStory

_ROWS = 30
_PICTURES = 48  # more say nothing new, and each is some kilobytes


def found_section(story: Story) -> Element:
    """Table of tasks and pictures of weights."""
    rows: list[list[Child]] = [
        [
            el("bdi", task.name) if task.layers else el("code", task.workload.id[:8]),
            task.workload.describe().replace("->", "\N{RIGHTWARDS ARROW}"),  # a hyphen is where lines break
            percent(task.workload.pattern.sparsity),
            task.workload.pattern.describe() + (f"; {task.structure}" if task.structure else ""),
            f"{task.workload.pattern.row_imbalance:.1f}",
            str(task.workload.pattern.empty_rows),
            str(task.count),
        ]
        for task in story.tasks
    ]
    columns = ["task", "shape", ">zeros", "pattern", ">longest row / mean", ">empty rows", ">layers"]
    section = el("section", el("h2", "What was found"), table(columns, rows[:_ROWS]), id="found")
    if len(rows) > _ROWS:
        section.append(details(f"{len(rows) - _ROWS} more tasks", table(columns, rows[_ROWS:])))
    pictured = [task for task in story.tasks if task.weight is not None]
    if pictured:
        section.append(el("h3", "Where the non-zero weights lie"))
        section.append(
            el(
                "p",
                "Left the whole matrix, scaled down: the fuller, the more opaque. Right its first 40 rows and columns, "
                "one square per weight. Rows are outputs, columns inputs (of a convolution: each channel's taps).",
                class_="soft",
            )
        )
        section.append(el("div", *map(_picture, pictured[:_PICTURES]), class_="grid-of"))
        if len(pictured) > _PICTURES:
            section.append(el("p", f"{len(pictured) - _PICTURES} more tasks are not pictured.", class_="soft"))
    else:
        section.append(el("p", "Give the model with --model to see pictures of its weights.", class_="soft"))
    if any(len(task.layers) > 1 for task in story.tasks):
        section.append(_shared(story))
    return section


def _picture(task: TaskStory) -> Element:
    if task.weight is None:
        raise ValueError(f"{task.name} has no weight")
    m, k = task.weight.shape
    whole, corner = png_url(whole_picture(task.weight)), png_url(corner_picture(task.weight))
    about = f"{m}x{k}, {percent(task.workload.pattern.sparsity)} zeros, {task.workload.pattern.describe()}"
    return el(
        "figure",
        el(
            "div",
            el("img", src=whole, alt=f"non-zeros of {task.name}, scaled down"),
            el("img", src=corner, alt=f"non-zeros of {task.name}, first rows and columns"),
            class_="pictures",
        ),
        el("figcaption", el("b", el("bdi", task.name)), f" {about}"),
    )


def _shared(story: Story) -> Element:
    items = [
        el("li", el("b", el("bdi", task.name)), ": ", el("bdi", ", ".join(task.layers)))
        for task in story.tasks
        if len(task.layers) > 1
    ]
    return details("Layers that share a task", el("ul", *items))
