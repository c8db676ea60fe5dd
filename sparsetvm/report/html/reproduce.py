"""Section "How to reproduce it": commands, versions, devices, runs."""

from __future__ import annotations

import shlex
from collections import defaultdict

from sparsetvm.core.record import Record
from sparsetvm.core.version import VERSION
from sparsetvm.examples import shown_model
from sparsetvm.report.html.element import Element, el
from sparsetvm.report.html.parts import table
from sparsetvm.report.story import Story, clocks_of

_RUNS = 50


def reproduce_section(story: Story) -> Element:
    """What to type, and what it was measured with."""
    section = el("section", el("h2", "How to reproduce it"), id="reproduce")
    section.append(el("pre", "\n".join(_commands(story))))
    section.append(
        el(
            "p",
            "The same seed proposes the same first candidates; later ones depend on what is measured. With the log in "
            "place tune measures nothing anew; --no-reuse searches again.",
            class_="soft",
        )
    )
    facts = [["this report", f"sparsetvm {VERSION}, from {story.told}"]]
    if story.model:
        facts.append(["model", f"{story.model}" + (f", SHA-256 {story.digest}" if story.digest else "")])
    for device in story.devices:
        more = "".join(f", {word}" for word in (device.driver and f"driver {device.driver}", device.clocks) if word)
        facts.append(["device", f"{device.model}, {device.isa}, {device.cores} cores{more}"])
    records = story.records
    for tools in dict.fromkeys(record.toolchain for record in records):
        facts.append(
            ["versions", f"sparsetvm {tools.sparsetvm}, TVM {tools.tvm}, numpy {tools.numpy}, Python {tools.python}"]
        )
    facts += _conditions(records)
    section.append(table(["what", "measured with"], [[el("b", name), el("bdi", value)] for name, value in facts]))
    runs = _runs(records)
    if runs:
        section.append(el("h3", "Runs"))
        columns = ["run", "from", "to", ">seed", ">records"]
        section.append(table(columns, [[el("code", run[0]), *run[1:]] for run in runs[:_RUNS]]))
    return section


def _commands(story: Story) -> list[str]:
    model = shlex.quote(shown_model(story.model or "MODEL.onnx"))
    tasks = story.tasks
    threads = f" --threads {tasks[-1].workload.threads}" if tasks and tasks[-1].device.kind == "cpu" else ""
    target = f" --target {tasks[-1].device.kind}" if tasks else ""
    seeds = [record.seed for record in story.records]
    seed = f" --seed {seeds[-1]}" if seeds else ""
    return [
        f"pip install sparsetvm=={VERSION}",
        f"sparsetvm inspect {model}{target}{threads}",
        f"sparsetvm tune {model}{target}{threads}{seed} -o model.so",
        f"sparsetvm verify model.so --reference {model}",
        f"sparsetvm bench model.so --reference {model}{threads}",
    ]


def _conditions(records: list[Record]) -> list[list[str]]:
    noted = [record.conditions for record in records if record.conditions is not None]
    facts: list[list[str]] = []
    governors = sorted({c.governor for c in noted if c.governor})
    if governors:
        facts.append(["governor", ", ".join(governors)])
    if clocks_of(records):
        facts.append(["clock", ", ".join(f"{mhz:.0f} MHz" for mhz in sorted(clocks_of(records)))])
    loads = [c.load for c in noted if c.load is not None]
    if loads:
        facts.append(["load", f"{min(loads):.1f} to {max(loads):.1f} processes ran or waited"])
    noise = [c.noise for c in noted if c.noise is not None]
    if noise:
        facts.append(["noise", f"two timings of one kernel differed by {100 * max(noise):.1f} % at most"])
    return facts


def _runs(records: list[Record]) -> list[list[str]]:
    """Newest first: name, first and last time, seed, records."""
    groups: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for record in records:
        if record.run:
            groups[record.run, record.seed].append(record.time)
    rows = [[run, min(t)[:19], max(t)[:19], str(seed), str(len(t))] for (run, seed), t in groups.items()]
    return sorted(rows, key=lambda row: row[2], reverse=True)
