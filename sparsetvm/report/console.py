"""Results as tables of at most 100 columns on stdout. Nothing here computes: every figure is in the report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsetvm.core.results import (
    BenchReport,
    CompileReport,
    DoctorReport,
    InspectReport,
    Latency,
    LayerError,
    PruneReport,
    TuneReport,
    VerifyReport,
)
from sparsetvm.log.maintenance import LogRow, age

COLUMNS = 100


def console() -> Console:
    """stdout, 100 columns at most; plain text when it is no terminal (rich obeys NO_COLOR)."""
    out = Console(soft_wrap=False, highlight=False)
    return out if out.is_terminal and out.width <= COLUMNS else Console(width=COLUMNS, soft_wrap=False, highlight=False)


_NAME_WIDTH = 14
_MAX_WIDTH = {"config": 42, "workload": 29}  # what may be cut so that the rest fits


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, fold: Sequence[str] = ()) -> Table:
    """A table; a column whose title starts with ">" is right-aligned, the columns in `fold` wrap, others are cut."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for title in columns:
        name = title.removeprefix(">")
        longest = max((len(row[len(table.columns)]) for row in rows), default=0)
        table.add_column(
            name,
            # Names may wrap but must not vanish when the other columns are wide.
            min_width=min(longest, _NAME_WIDTH) if name in fold else None,
            max_width=_MAX_WIDTH.get(name),
            justify="right" if title.startswith(">") else "left",
            overflow="fold" if name in fold else "ellipsis",
            no_wrap=name not in fold,
        )
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    return table


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def factor(speedup: float | None) -> str:
    return "-" if speedup is None else f"{speedup:.2f}x"


def micros(us: float | None) -> str:
    return "-" if us is None else f"{us:.1f}"


def _say(out: Console, text: str) -> None:
    out.print(Text(text), soft_wrap=True)


def print_inspect(report: InspectReport) -> None:
    """One row per layer; why dense layers stay dense stands below the table, one line per reason,
    and structure that the pattern does not show.
    """
    out = console()
    rows = [
        (
            layer.name,
            f"{layer.op} {layer.shape}" if not layer.shape.startswith(layer.op) else layer.shape,
            percent(layer.sparsity),
            layer.pattern,
            f"{layer.row_imbalance:.1f}",
            factor(layer.expected_speedup),
            layer.verdict,
        )
        for layer in report.layers
    ]
    _say(out, f"{report.model} for {report.target}")
    columns = ("layer", "shape", ">zeros", "pattern", ">imbalance", ">expected", "verdict")
    out.print(make_table(columns, rows, fold=("layer",)))
    reasons: dict[str, list[str]] = {}
    for layer in report.layers:
        if layer.verdict != "sparse":
            reasons.setdefault(layer.reason, []).append(layer.name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        _say(out, f"{names[0]}{more}: {reason}")
    for layer in report.layers:
        if layer.structure:
            _say(out, f"{layer.name}: {layer.structure} (kernels are chosen for: {layer.pattern})")
    sparse = sum(layer.verdict == "sparse" for layer in report.layers)
    _say(out, f"{sparse} of {len(report.layers)} layers would run sparse")
    for note in report.notes:
        _say(out, f"note: {note}")
    if sparse:
        _say(out, f"next: sparsetvm tune {shlex.quote(report.model)} -o model.so")


def print_tasks(report: TuneReport) -> None:
    """`tune --tasks list`: what can be named in --tasks."""
    out = console()
    rows = [
        (str(number), task.name, task.workload, task.pattern, percent(task.sparsity), str(task.count), task.source)
        for number, task in enumerate(report.tasks, 1)
    ]
    columns = (">#", "task", "workload", "pattern", ">zeros", ">layers", "known")
    out.print(make_table(columns, rows, fold=("task",)))


def print_tune(report: TuneReport) -> None:
    """The tasks, what was measured, and the command to type next."""
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
    columns = ("task", "workload", ">zeros", ">layers", ">dense us", ">best us", ">speed-up", ">trials", "source")
    out.print(make_table(columns, rows, fold=("task",)))
    statuses = ", ".join(f"{count} {status}" for status, count in report.statuses.items() if count)
    measured = f"{report.trials_run} trials in {report.seconds:.0f} s" + (f" ({statuses})" if statuses else "")
    _say(out, f"{measured}; {report.reused} of {len(report.tasks)} tasks reused")
    _say(out, f"device: {report.device}, {report.threads} thread{'s' if report.threads != 1 else ''}")
    _say(out, f"log: {report.log}")
    if report.interrupted:
        return
    if report.output is not None:
        _say(out, f"wrote {report.output}")
        _say(out, f"next: sparsetvm bench {shlex.quote(report.output)} --reference {shlex.quote(report.model)}")
    else:
        target = shlex.quote(report.target)
        threads = f"--threads {report.threads}"
        _say(out, f"next: sparsetvm compile {shlex.quote(report.model)} --target {target} {threads} -o model.so")


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
    _say(out, f"wrote {report.output} and {report.manifest} for {report.target} in {report.seconds:.1f} s")
    _say(out, f"next: sparsetvm verify {shlex.quote(report.output)} --reference {shlex.quote(report.model)}")


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
    _say(out, f"{report.model}, {report.threads} thread{'s' if report.threads != 1 else ''}, ms per inference")
    out.print(make_table(("", ">median", ">p90", ">p99", ">min", ">repeats", ">we are faster by"), rows))
    for note in report.notes:
        _say(out, f"note: {note}")


def _latency_row(name: str, latency: Latency, speedup: float | None) -> tuple[str, ...]:
    times = (latency.median, latency.p90, latency.p99, latency.min)
    return (name, *(f"{ms:.3f}" for ms in times), str(latency.repeats), factor(speedup) if speedup else "")


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
    _say(out, f"{verdict}: relative L2 error {report.rel_l2_error:.2e}, tolerance {report.tolerance:.0e}")
    for note in report.notes:
        _say(out, f"note: {note}")


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
    _say(out, f"wrote {report.output}: {report.pattern}, {percent(report.sparsity)} zeros in the pruned layers")
    _say(out, "note: not trained again; good for questions about speed, not about accuracy")
    _say(out, f"next: sparsetvm inspect {shlex.quote(report.output)}")


def print_doctor(report: DoctorReport) -> None:
    """One line per check, with the next step for each that failed."""
    out = console()
    for check in report.checks:
        _say(out, f"{'ok  ' if check['ok'] else 'FAIL'}  {check['name']}: {check['detail']}")
        if not check["ok"]:
            _say(out, f"      next step: {check['next_step']}")
    _say(out, "all well" if report.ok else "something is missing: see the next steps above")


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
        _say(out, f"{count} task{'s' if count != 1 else ''} on {device}")
    _say(out, "next: sparsetvm log best ID --why" if rows else "no records yet; sparsetvm tune MODEL makes some")
