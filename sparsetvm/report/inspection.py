"""What `inspect` prints: the layers of a model, or what is in a compiled library."""

from __future__ import annotations

import shlex

from rich.console import Console
from rich.table import Table

from sparsetvm.analysis.limits import LIMITS
from sparsetvm.core.results import InspectReport, LayerReport, LibraryLayer, LibraryReport
from sparsetvm.examples import shown_model
from sparsetvm.frontend.names import display_name, display_names
from sparsetvm.report.forecast import forecast_lines
from sparsetvm.report.table import console, factor, make_table, micros, percent, say

_COLUMNS = ("layer", "shape", ">zeros", "pattern", ">share", ">expected", "verdict: bound by")


def print_inspect(report: InspectReport, options: str = "") -> None:
    """One row per layer. Below the table: why dense layers stay dense and what bounds the sparse ones, a line for each
    reason; structure that the pattern does not show; the model as a whole; what to type next.

    options: those of this call that the next one needs, too (" --threads 1").
    """
    out = console()
    threads = f"{report.threads} thread{'s' if report.threads != 1 else ''}"
    say(out, f"{shown_model(report.model)} for {report.target}, {threads}")
    out.print(make_table(_COLUMNS, [_row(layer) for layer in report.layers], fold=("layer",)))
    _say_why(out, report)
    for layer in report.layers:
        if layer.structure:
            say(out, f"{display_name(layer.name)}: {layer.structure} (kernels are chosen for: {layer.pattern})")
    _say_what_is_shared(out, report)
    sparse = sum(layer.verdict == "sparse" for layer in report.layers)
    say(out, f"{sparse} of {len(report.layers)} layers would run sparse" + (_gain(report) if sparse else ""))
    for note in report.notes:
        say(out, f"note: {note}")
    for line in forecast_lines(report):
        out.print(line) if isinstance(line, Table) else say(out, line)
    if sparse:
        say(out, f"next: sparsetvm tune {shlex.quote(shown_model(report.model))}{options} -o model.so")


def print_library(report: LibraryReport) -> None:
    """One row per layer: which kernel it has, where that comes from, and what was measured when it was compiled."""
    out = console()
    threads = f"{report.threads} thread{'s' if report.threads != 1 else ''}"
    say(out, f"{report.library}: {report.model} for {report.target}, {threads}, {report.bytes / 1e6:.1f} MB")
    columns = ("layer", "workload", ">zeros", ">dense us", ">best us", ">gain", "source", "template")
    out.print(make_table(columns, [_library_row(layer) for layer in report.layers], fold=("layer",)))
    for what, tensors in (("input", report.inputs), ("output", report.outputs)):
        for tensor in tensors:
            say(out, f"{what} {tensor['name']}: {tensor['dtype']} {tensor['shape']}")
    made = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    say(out, f"{report.kernels} kernels, made by {made}; docs/deploy.md says how to ship it")
    say(out, f"next: sparsetvm bench {shlex.quote(report.library)} --per-layer")


def _library_row(layer: LibraryLayer) -> tuple[str, ...]:
    template = layer.config.removeprefix("Config.of(").split(",")[0].strip("')\"")
    arithmetic = "" if layer.arithmetic == "float32" else f", {layer.arithmetic}"
    times = (micros(layer.dense_us), micros(layer.best_us), factor(layer.speedup))
    return (layer.name, layer.workload, percent(layer.sparsity), *times, layer.source + arithmetic, template)


def _row(layer: LayerReport) -> tuple[str, ...]:
    return (
        layer.name,
        f"{layer.op} {layer.shape}" if not layer.shape.startswith(layer.op) else layer.shape,
        percent(layer.sparsity),
        layer.pattern,
        f"{100 * layer.share:.0f} %",
        factor(layer.expected_speedup),
        f"{layer.verdict}: {layer.limit}" if layer.limit else layer.verdict,
    )


def _say_why(out: Console, report: InspectReport) -> None:
    """Why layers are not faster."""
    reasons: dict[str, list[str]] = {}
    for layer in report.layers:
        if layer.verdict != "sparse":
            reasons.setdefault(layer.reason, []).append(layer.name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        say(out, f"{display_name(names[0])}{more}: {reason}")
    for limit in dict.fromkeys(layer.limit for layer in report.layers if layer.limit):
        say(out, f"{limit}: {LIMITS[limit]}")


def _gain(report: InspectReport) -> str:
    """What the roofline expects of all layers, and of the model."""
    if report.speedup is None or report.layers_speedup is None:
        return ""
    return f": {report.layers_speedup:.1f}x over dense kernels expected, of the whole model about {report.speedup:.1f}x"


def _say_what_is_shared(out: Console, report: InspectReport) -> None:
    groups: dict[tuple[str, bool], list[str]] = {}
    for layer in report.layers:
        if layer.same_positions:
            groups.setdefault((layer.same_positions, layer.shares_kernel), []).append(layer.name)
    for (first, kernel), names in groups.items():
        what = "one kernel" if kernel else "but not the kernel: shapes, layouts or epilogues differ"
        say(out, f"{display_names(names)}: non-zeros in the same places as {display_name(first)}, {what}")
