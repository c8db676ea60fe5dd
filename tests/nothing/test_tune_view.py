"""The live table of a tune."""

import io

import pytest
from rich.console import Console

from sparsetvm.core.results import Event
from sparsetvm.report.progress import LiveProgress
from sparsetvm.report.tune_view import TuneView


def plan(count=3, **limits):
    rows = [{"name": f"conv{i}", "pattern": "block 4x1", "sparsity": 0.9, "count": 2} for i in range(count)]
    return Event(kind="start", data={"tasks": count, "log": "logs/cpu.jsonl", "seed": 7, "plan": rows, **limits})


def trial(task, best, dense=None, status="ok"):
    data = {"status": status, **({"best_us": best} if best else {}), **({"dense_us": dense} if dense else {})}
    return Event(kind="trial", task=task, message="Config.of('x')", data=data)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def view(*events, clock=None):
    found = TuneView(clock=clock or Clock())
    for event in events:
        found.apply(event)
    return found


def text(shown, width=100, height=30):
    out = io.StringIO()
    Console(file=out, width=width, height=height, force_terminal=False).print(shown)
    return out.getvalue()


def test_table_has_times_gain_trials_and_failures_of_each_task():
    shown = text(view(plan(), trial("conv0", 10.0, 40.0), trial("conv0", 10.0, 40.0, "crash"), trial("conv1", 5.0)))
    row = next(line for line in shown.splitlines() if line.startswith("conv0")).split()
    assert row == ["conv0", "block", "4x1", "90.0", "%", "2", "40.0", "10.0", "4.00x", "2", "1"]
    assert "failures: 1 crash" in shown
    assert "log logs/cpu.jsonl, seed 7" in shown


def test_latency_falls_and_says_from_where():
    shown = view(plan(1), trial("conv0", 20.0, 40.0))
    assert "all layers: 40 us, dense 80 us: 2.00x" in text(shown)
    shown.apply(trial("conv0", 10.0, 40.0))
    assert "all layers: 20 us, dense 80 us, 40 us at first: 4.00x" in text(shown)


def test_latency_is_drawn_as_it_falls_where_the_terminal_can():
    shown = view(plan(1), *(trial("conv0", us, 40.0) for us in (20.0, 20.0, 10.0, 2.0)))
    assert shown.history == [40.0, 20.0, 4.0]
    assert "20.00x  █▅▁" in text(shown)
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    Console(file=out, width=100, height=30).print(shown)
    line = next(line for line in out.buffer.getvalue().decode().splitlines() if line.startswith("all layers"))
    assert line.rstrip().endswith("20.00x")


def test_long_histories_are_thinned_to_their_first_and_last():
    shown = view(plan(1), *(trial("conv0", 100.0 - at, 400.0) for at in range(90)))
    line = next(line for line in text(shown).splitlines() if line.startswith("all layers"))
    bars = line.split()[-1]
    assert (len(bars), bars[0], bars[-1]) == (24, "█", "▁")


def test_end_of_a_run_is_not_announced_on_a_terminal_nor_warnings_twice():
    stream = Terminal()
    with LiveProgress(Console(file=stream, force_terminal=True, width=100, height=30), verbose=False) as progress:
        for event in (
            plan(),
            Event(kind="warning", task="conv0", message="noisy by 9 %", data={"noise": 0.09}),
            Event(kind="end", message="done"),
        ):
            progress(event)
    assert "[warning] conv0: noisy by 9 %" in stream.getvalue()
    assert "noise=" not in stream.getvalue()
    assert "[end]" not in stream.getvalue()


@pytest.mark.parametrize(
    ("limits", "left"),
    [({"seconds": 60.0}, 50.0), ({"trials": 20}, 90.0), ({"each": 5}, 60.0)],
)
def test_time_left_follows_the_limit_that_was_given(limits, left):
    clock = Clock()
    shown = view(plan(2, **limits), clock=clock)
    assert shown.seconds_left() == (60.0 if "seconds" in limits else None)
    shown.apply(trial("conv0", 1.0))
    shown.apply(trial("conv0", 1.0))
    clock.now += 10.0
    if "each" in limits:  # 2 of 5 trials of the first are done; the second was answered by the log
        shown.apply(trial("conv1", 1.0))
        assert shown.seconds_left() == pytest.approx(7 * 10 / 3)
        shown.apply(Event(kind="task_end", task="conv1", message="reused (exact)"))
        assert shown.seconds_left() == pytest.approx(3 * 10 / 3)
    else:
        assert shown.seconds_left() == pytest.approx(left)


@pytest.mark.parametrize(("width", "height"), [(100, 24), (60, 14), (40, 10)])
def test_view_fits_the_terminal(width, height):
    shown = view(plan(40), *(trial(f"conv{i}", 10.0 + i, 99.0) for i in range(40)))
    lines = text(shown, width, height).splitlines()
    assert len(lines) <= height + 3  # never fewer than three tasks
    assert max(map(len, lines)) <= width
    assert "conv39" in "\n".join(lines)  # takes most time
    assert any("more" in line for line in lines)


def test_hostile_name_cannot_reach_the_terminal():
    event = plan(1)
    event.data["plan"][0]["name"] = "a\x1b[31m[bold]"
    shown = text(view(event, trial("a\x1b[31m[bold]", 1.0)))
    assert "\x1b" not in shown
    assert "[bold]" in shown


def test_live_progress_keeps_notes_and_drops_the_table_at_the_end():
    stream = Terminal()
    console = Console(file=stream, force_terminal=True, width=100, height=30)
    with LiveProgress(console, verbose=False) as progress:
        for event in (plan(), trial("conv0", 10.0, 40.0), Event(kind="note", task="conv0", message="kept")):
            progress(event)
        progress(Event(kind="compile", message="compiling m.so"))
    assert "[note] conv0: kept" in stream.getvalue()
    assert "[trial]" not in stream.getvalue()
