"""Tables and progress lines."""

import io

import pytest
from rich.console import Console

from sparsetvm.core import results
from sparsetvm.core.results import Event
from sparsetvm.report import console, inspection, table
from sparsetvm.report.progress import LineProgress, LiveProgress, NoProgress, describe, make_progress


def inspect_report(layers):
    return results.InspectReport(
        model="m.onnx", target="cpu,znver4", notes=["nothing else"],
        layers=[
            results.LayerReport(
                name=name, op="conv2d", shape="3x3 512->512 7x7", sparsity=sparsity, pattern="block 4x1",
                row_imbalance=3.25, empty_rows=0, nnz=1, expected_speedup=6.25, verdict=verdict, reason=reason,
            )
            for name, sparsity, verdict, reason in layers
        ],
    )  # fmt: skip


LONG = "/backbone/stage_4/block_2/branch/convolution_3x3/Conv_" + "x" * 60


def test_inspect_fits_100_columns_and_keeps_long_names_whole(capsys):
    inspection.print_inspect(inspect_report([(LONG, 0.9, "sparse", "")]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert LONG in "".join(line.split(" ")[0] for line in lines)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_figures_stay_whole_and_names_readable_on_narrow_terminals(monkeypatch, width):
    out = io.StringIO()
    monkeypatch.setattr(table, "console", lambda: Console(file=out, width=width))
    columns = ("layer", "workload", ">zeros", ">best us", ">gain", "source")
    row = ("stage_4/Conv_1", "conv2d 3x3/2 1024->1024 112x112", "90.0 %", "12345.6", "10.00x", "compatible")
    Console(file=out, width=width).print(table.make_table(columns, [row], fold=("layer",)))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert all(figure in lines[2] for figure in ("90.0 %", "12345.6", "10.00x"))
    assert "".join(line[:14].split(" ")[0] for line in lines[2:]).startswith("stage_4/Conv_1")


def test_inspect_says_each_reason_once(capsys):
    why = "43 % sparse, break-even here is about 60 %"
    inspection.print_inspect(
        inspect_report([("a", 0.43, "dense", why), ("b", 0.43, "dense", why), ("c", 0.9, "sparse", "")])
    )
    out = capsys.readouterr().out
    assert out.count(why) == 1
    assert "a and 1 more: 43 % sparse" in out
    assert "1 of 3 layers would run sparse" in out
    assert "next: sparsetvm tune m.onnx" in out


def test_inspect_of_a_dense_model_suggests_no_tuning(capsys):
    inspection.print_inspect(inspect_report([("a", 0.0, "dense", "no zeros")]))
    out = capsys.readouterr().out
    assert "0 of 1 layers would run sparse" in out
    assert "next:" not in out


def test_names_with_markup_are_printed_as_they_are(capsys):
    inspection.print_inspect(inspect_report([("[red]layer[/red]", 0.9, "sparse", "")]))
    assert "[red]layer[/red]" in capsys.readouterr().out


def test_next_command_quotes_what_the_shell_would_split(capsys):
    report = results.PruneReport(
        model="m.onnx", output="my model.onnx", pattern="unstructured", sparsity=0.9, layers=[]
    )
    console.print_prune(report)
    assert "inspect 'my model.onnx'" in capsys.readouterr().out


def test_doctor_prints_the_next_step_of_a_failed_check_only(capsys):
    checks = [
        {"name": "a", "ok": True, "detail": "fine"},
        {"name": "b", "ok": False, "detail": "gone", "next_step": "get one"},
    ]
    console.print_doctor(results.DoctorReport(ok=False, checks=checks))
    out = capsys.readouterr().out
    assert "ok    a: fine" in out
    assert "FAIL  b: gone" in out
    assert out.count("next step: ") == 1


def test_event_becomes_one_line():
    event = Event(kind="task_end", task="conv1", message="done", data={"best_us": 12.3456, "trials": 9, "list": [1]})
    assert describe(event) == "[task end] conv1: done best_us=12.35 trials=9"


def trial(best, status="ok"):
    return Event(kind="trial", task="conv1", data={"best_us": best, "status": status})


def lines(verbose, *events):
    stream = io.StringIO()
    with LineProgress(stream, verbose) as progress:
        for event in events:
            progress(event)
    return stream.getvalue().splitlines()


def test_lines_leave_ordinary_trials_out_unless_verbose():
    events = (trial(9.0), trial(9.0), trial(9.0, "crash"), trial(8.0), Event(kind="end", message="done"))
    assert len(lines(False, *events)) == 4
    assert len(lines(True, *events)) == 5


def test_lines_hold_no_ansi():
    assert "\x1b" not in "".join(lines(True, Event(kind="note", message="[bold]x[/bold]")))
    assert lines(True, Event(kind="note", message="[bold]x[/bold]")) == ["[note] [bold]x[/bold]"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_fits_the_stream():
    assert isinstance(make_progress(stream=io.StringIO()), LineProgress)
    assert isinstance(make_progress(stream=Terminal()), LiveProgress)
    assert isinstance(make_progress(stream=Terminal(), quiet=True), NoProgress)


@pytest.mark.parametrize("verbose", [False, True])
def test_live_progress_keeps_ends_and_notes_above_the_spinner(verbose):
    stream = Terminal()
    with make_progress(stream=stream, verbose=verbose) as progress:
        for event in (Event(kind="task_start", task="conv1"), trial(9.0), Event(kind="note", message="[x] kept")):
            progress(event)
    assert "[note] [x] kept" in stream.getvalue()


def test_notebook_shows_a_report_as_escaped_tables():
    shown = inspect_report([("<script>\x1b", 0.9, "sparse", "")])._repr_html_()
    assert "&lt;script&gt;\\x1b" in shown
    assert "<script>" not in shown
    assert "<th" in shown
    assert "0.9<" in shown
    checks = [{"name": "a", "ok": True}, {"next_step": "b"}]
    assert results.DoctorReport(ok=True, checks=checks)._repr_html_().count("<tr>") == 4
