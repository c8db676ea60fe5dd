"""Results as tables of at most 100 columns on stdout. Nothing here computes: every figure is in the report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.console import Console

from sparsetvm.core.results import (
    BenchReport,
    CompileReport,
    DoctorReport,
    Latency,
    LayerError,
    PruneReport,
    TuneReport,
    VerifyReport,
)
from sparsetvm.examples import shown_model
from sparsetvm.frontend.names import display_name
from sparsetvm.log.maintenance import LogRow, age
from sparsetvm.report.table import console, factor, make_table, micros, percent, say


def print_tasks(report: TuneReport) -> None:
    """`tune --tasks list`: what can be named in --tasks."""
    out = console()
    rows = [
        (str(number), task.name, task.workload, task.pattern, percent(task.sparsity), str(task.count), task.source)
        for number, task in enumerate(report.tasks, 1)
    ]
    columns = (">#", "task", "workload", "pattern", ">zeros", ">layers", "known")
    out.print(make_table(columns, rows, fold=("task",)))


def print_tune(report: TuneReport, options: str = "", *, dry: bool = False) -> None:
    """The tasks, what was measured, and the command to type next, with the options of this one that it needs, too."""
    out = console()
    rows = [
        (
            task.name,
            task.workload,
            percent(task.sparsity),
            str(task.count),
            micros(task.dense_us),
            micros(task.best_us),
            factor(task.speedup),
            str(task.trials),
            task.source if task.arithmetic == "float32" else f"{task.source}, {task.arithmetic}",
        )
        for task in report.tasks
    ]
    columns = ("task", "workload", ">zeros", ">layers", ">dense us", ">best us", ">gain", ">trials", "source")
    out.print(make_table(columns, rows, fold=("task",)))
    for task in report.tasks:
        if task.reason:
            say(out, f"{display_name(task.name)}: {task.reason}")
    timed = [
        (task.count * task.dense_us, task.count * task.best_us)
        for task in report.tasks
        if task.speedup and task.dense_us and task.best_us
    ]
    if timed:
        dense, best = (sum(times) for times in zip(*timed, strict=True))
        say(out, f"sum of the layers: {micros(best)} us, dense {micros(dense)} us: {factor(dense / best)}")
    statuses = ", ".join(f"{count} {status}" for status, count in report.statuses.items() if count)
    measured = f"{report.trials_run} trials in {report.seconds:.0f} s" + (f" ({statuses})" if statuses else "")
    say(out, f"{measured}; {report.reused} of {len(report.tasks)} tasks reused")
    say(out, f"device: {report.device}, {report.threads} thread{'s' if report.threads != 1 else ''}")
    say(out, f"log: {report.log}, seed {report.seed}" + (f", run {report.run}" if report.run else ""))
    if report.interrupted:
        return
    if report.output is not None:
        say(out, f"wrote {report.output}")
        say(out, f"next: sparsetvm bench {shlex.quote(report.output)} --reference {_model(report.model)}")
    elif dry:
        say(out, f"next: sparsetvm tune {_model(report.model)}{options} -o model.so")
    else:
        say(out, f"next: sparsetvm compile {_model(report.model)}{options} -o model.so")


def _model(path: str) -> str:
    return shlex.quote(shown_model(path))


def print_compile(report: CompileReport) -> None:
    """Where each layer's kernel comes from, and what was written."""
    out = console()
    rows = [
        (
            str(layer.get("name", "")),
            str(layer.get("workload", "")),
            str(layer.get("config", "")),
            str(layer.get("source", "")),
        )
        for layer in report.layers
    ]
    if rows:
        out.print(make_table(("layer", "workload", "config", "source"), rows, fold=("layer",)))
    say(out, f"wrote {report.output} and {report.manifest} for {report.target} in {report.seconds:.1f} s")
    say(out, f"next: sparsetvm verify {shlex.quote(report.output)} --reference {_model(report.model)}")


def print_bench(report: BenchReport) -> None:
    """Ours beside the competitors, medians first."""
    out = console()
    names = {
        "ort": "ONNX Runtime",
        "openvino": "OpenVINO",
        "openvino-f32": "OpenVINO, float32",
        "dense": "sparsetvm, dense",
    }
    rows = [_latency_row("sparsetvm", report.latency_ms, None)]
    rows += [
        _latency_row(names.get(name, name), latency, report.speedup.get(name))
        for name, latency in report.against.items()
    ]
    threads = f"{report.threads} thread{'s' if report.threads != 1 else ''}"
    instances = f", {report.instances} instances of each at the same time" if report.instances > 1 else ""
    say(out, f"{shown_model(report.model)}, {threads}{instances}, ms per inference")
    columns = (
        "",
        *(f">{name}" for name in _percentiles(report.latency_ms)),
        ">mean",
        ">min",
        ">runs/s",
        ">runs",
        ">p50 over ours",
    )
    out.print(make_table(columns, rows))
    for note in report.notes:
        say(out, f"note: {note}")
    if report.per_layer:
        _print_per_layer(out, report)


def _print_per_layer(out: Console, report: BenchReport) -> None:
    """Each kernel, and what of a run is in none of them."""
    rows = [(time.name, time.op, micros(time.us), percent(time.share)) for time in report.per_layer]
    say(out, "")
    out.print(make_table(("layer", "operator", ">us", ">share"), rows, fold=("layer",)))
    kernels, whole = sum(time.us for time in report.per_layer), 1e3 * report.latency_ms.median
    rest = f"{micros(whole - kernels)} us are copies in and out, memory and calls" if whole > kernels else "all of it"
    say(out, f"{micros(kernels)} us in {len(rows)} kernels, {micros(whole)} us for a whole run: {rest}")
    say(out, "note: taken one by one between callbacks, which makes kernels of a few microseconds seem slower")


def _percentiles(latency: Latency) -> dict[str, float]:
    """ "p50" -> milliseconds, in ascending order."""
    known = {"p50": latency.median, "p90": latency.p90, "p99": latency.p99, **latency.percentiles}
    return dict(sorted(known.items(), key=lambda item: float(item[0][1:])))


def _latency_row(name: str, latency: Latency, speedup: float | None) -> tuple[str, ...]:
    times = (*_percentiles(latency).values(), latency.mean, latency.min)
    shown = ("-" if ms is None else f"{ms:.3f}" for ms in times)
    rate = "-" if latency.per_second is None else f"{latency.per_second:.1f}"
    return (name, *shown, rate, str(latency.repeats), factor(speedup) if speedup else "")


_LAYER_COLUMNS = ("layer", "operator", ">terms", ">error", ">bound", ">error / bound", ">error in the model", "")


def _layer_row(layer: LayerError) -> tuple[str, ...]:
    return (
        layer.name,
        layer.op,
        str(layer.terms),
        f"{layer.abs_error:.1e}",
        f"{layer.bound:.1e}",
        f"{layer.of_bound:.3f}",
        "-" if layer.model_error is None else f"{layer.model_error:.1e}",
        "ok" if layer.passed else "WRONG",
    )


def print_verify(report: VerifyReport) -> None:
    """Errors per output, and the verdict."""
    out = console()
    rows = [(o.name, f"{o.rel_l2_error:.2e}", f"{o.max_abs_error:.2e}") for o in report.outputs]
    out.print(make_table(("output", ">relative L2 error", ">largest absolute error"), rows, fold=("output",)))
    if report.layers:
        out.print(make_table(_LAYER_COLUMNS, [_layer_row(layer) for layer in report.layers], fold=("layer",)))
    verdict = "passed" if report.passed else "FAILED"
    say(out, f"{verdict}: relative L2 error {report.rel_l2_error:.2e}, tolerance {report.tolerance:.0e}")
    for note in report.notes:
        say(out, f"note: {note}")


def print_prune(report: PruneReport) -> None:
    """What was pruned."""
    out = console()
    rows = [
        (
            layer["name"],
            layer["shape"],
            percent(layer["sparsity_before"]),
            percent(layer["sparsity"]),
            "pruned" if layer["pruned"] else layer["reason"],
        )
        for layer in report.layers
    ]
    if rows:
        out.print(make_table(("layer", "shape", ">zeros before", ">after", ""), rows, fold=("layer", "")))
    say(out, f"wrote {report.output}: {report.pattern}, {percent(report.sparsity)} zeros in the pruned layers")
    say(
        out,
        f"removed: {percent(report.l1_removed)} of the weights' L1 norm, {percent(report.l2_removed)} of their L2 norm "
        f"(unstructured: {percent(report.l1_removed_unstructured)}, {percent(report.l2_removed_unstructured)})",
    )
    say(out, "note: not trained again; good for questions about speed, not about accuracy")
    say(out, f"next: sparsetvm inspect {shlex.quote(report.output)}")


def print_doctor(report: DoctorReport) -> None:
    """One line per check, with the next step for each that failed."""
    out = console()
    say(out, "sparsetvm doctor (paste all of it into a bug report)")
    for check in report.checks:
        say(out, f"{'ok  ' if check['ok'] else 'FAIL'}  {check['name']}: {check['detail']}")
        if not check["ok"]:
            say(out, f"      next step: {check['next_step']}")
    say(out, "all well" if report.ok else "something is missing: see the next steps above")


def print_log(rows: Sequence[LogRow]) -> None:
    """`log ls`: one line per task and device."""
    out = console()
    cells = [
        (
            row.workload_id[:8],
            row.workload.describe(),
            row.workload.pattern.describe(),
            percent(row.workload.pattern.sparsity),
            micros(row.best_us),
            str(row.count),
            str(row.failed),
            age(row.newest),
            row.config.removeprefix("Config.of(").split(",")[0].strip("')\""),
        )
        for row in rows
    ]
    columns = ("id", "workload", "pattern", ">zeros", ">best us", ">trials", ">failed", ">age", "template")
    if cells:
        out.print(make_table(columns, cells))
    for device in dict.fromkeys(row.device for row in rows):
        count = sum(row.device == device for row in rows)
        say(out, f"{count} task{'s' if count != 1 else ''} on {device}")
    say(out, "next: sparsetvm log best ID --why" if rows else "no records yet; sparsetvm tune MODEL makes some")
