"""The whole page: one file without scripts that loads nothing; its Content-Security-Policy tells the browser so."""

from __future__ import annotations

from importlib import resources

from sparsetvm.report.html.element import Element, el, render
from sparsetvm.report.html.found import found_section
from sparsetvm.report.html.gained import gained_section
from sparsetvm.report.html.parts import card, count, factor, micros, percent
from sparsetvm.report.html.reproduce import reproduce_section
from sparsetvm.report.html.tried import tried_section
from sparsetvm.report.learned import Learned
from sparsetvm.report.story import Story

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def make_page(story: Story, learned: Learned) -> bytes:
    """The report as HTML, UTF-8."""
    title = story.model.rpartition("/")[2] or story.told
    style = resources.files("sparsetvm.report.html").joinpath("style.css").read_text(encoding="utf-8")
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        el("title", f"sparsetvm: {title}"),
        el("style", style),
    )
    links = [("found", "found"), ("tried", "tried"), ("gained", "gained"), ("reproduce", "how to reproduce it")]
    body = el(
        "body",
        el("h1", el("bdi", title)),
        el("p", "sparsetvm report of ", el("bdi", story.told), _devices(story), class_="soft"),
        el("nav", *(el("a", words, href=f"#{name}") for name, words in links)),
        _cards(story),
        *(el("p", f"Note: {note}", class_="warn-text") for note in story.notes),
        found_section(story),
        tried_section(story, learned),
        gained_section(story),
        reproduce_section(story),
    )
    return render(el("html", head, body, lang="en"))


def _devices(story: Story) -> str:
    return f", measured on {', '.join(device.model for device in story.devices)}" if story.devices else ""


def _cards(story: Story) -> Element:
    timed = [task for task in story.tasks if task.best and task.dense]
    best = sum(task.count * (task.best or 0.0) for task in timed)
    dense = sum(task.count * (task.dense or 0.0) for task in timed)
    layers = sum(task.count for task in story.tasks)
    size = sum(task.count * task.workload.m * task.workload.k for task in story.tasks)
    nonzeros = sum(task.count * task.workload.nnz for task in story.tasks)
    cards = [
        card(str(len(story.tasks)), f"tasks ({count(layers, 'layer')})"),
        card(percent(1 - nonzeros / size) if size else "-", "zeros in their weights"),
        card(factor(dense / best) if best else "-", f"over dense, sum of {count(len(timed), 'task')}"),
        card(f"{micros(dense)} to {micros(best)}" if best else "-", "sum of the layers"),
        card(str(sum(len(task.trials) for task in story.tasks)), "trials of the search"),
    ]
    return el("div", *cards, class_="cards")
