"""What replayed searches come to: by task, over all tasks, and as a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchlib.search_replay import METHODS, Method, Run
from benchlib.search_table import Table
from benchlib.summary import geomean

Runs = Mapping[Method, Sequence[Run]]

_CLOSE = 1.05
_SHOWN = (4, 8, 16, 32, 64)


def mean_curve(curves: Sequence[Sequence[float]]) -> list[float]:
    """Geometric mean of the curves after each trial."""
    return [geomean(values) for values in zip(*curves, strict=True)]


def trials_to(curve: Sequence[float], close: float = _CLOSE) -> int | None:
    """The first trial after which the curve is within `close` of the optimum, None when it never is."""
    return next((at for at, value in enumerate(curve, 1) if value <= close), None)


def mean_trials_to(curves: Sequence[Sequence[float]], close: float = _CLOSE) -> float:
    """The mean of `trials_to` over runs. One that never came close counts as one trial more than it had."""
    return statistics.mean(trials_to(curve, close) or len(curve) + 1 for curve in curves)


def worst_ratio(curve: Sequence[float], other: Sequence[float]) -> float:
    """The largest ratio of two curves at an equal number of trials."""
    return max(ours / theirs for ours, theirs in zip(curve, other, strict=True))


def task_row(table: Table, full_space: int, runs: Runs) -> dict[str, Any]:
    """JSON of one task."""
    curves = {method: mean_curve([run.curve for run in runs[method]]) for method in METHODS}
    correlations = [run.rank_correlation for run in runs["guided"] if run.rank_correlation is not None]
    workload = table.task.workload
    return {
        "task": table.name, "op": workload.op, "m": workload.m, "k": workload.k, "n": workload.n,
        "pattern": workload.pattern.describe(), "density": workload.pattern.density,
        "row_imbalance": workload.pattern.row_imbalance,
        "configs": len(table.seen), "configs_asked": table.asked, "configs_of_templates": full_space,
        "optimum_us": table.optimum_us,
        "default": table.slower(table.candidates.default),
        "best_built_again": table.again_us[table.best] / min(table.again_us.values()),
        "curves": curves,
        "trials_to_5pct": {method: mean_trials_to([run.curve for run in runs[method]]) for method in METHODS},
        "worst_vs_random": worst_ratio(curves["guided"], curves["random"]),
        "rank_correlation": statistics.mean(correlations) if correlations else None,
    }  # fmt: skip


def summarize(rows: Sequence[Mapping[str, Any]], runs: Sequence[Runs]) -> dict[str, Any]:
    """Figures over all tasks; gaps are geometric means over the optimum, less 1. Trials are means over the runs of a
    task, then geometric means over tasks.
    """
    curves = {method: mean_curve([row["curves"][method] for row in rows]) for method in METHODS}
    reached = {method: geomean(row["trials_to_5pct"][method] for row in rows) for method in METHODS}
    guided = [run for task in runs for run in (*task["guided"], *task["warm"])]
    correlations = [row["rank_correlation"] for row in rows if row["rank_correlation"] is not None]
    return {
        "gap_at_64": _gap(curves["guided"], 64),
        "gap_at_64_random": _gap(curves["random"], 64),
        "gap_at_16_warm": _gap(curves["warm"], 16),
        "gap_of_best_built_again": geomean(row["best_built_again"] for row in rows) - 1,
        "trials_to_5pct": reached,
        "trials_to_5pct_vs_random": reached["guided"] / reached["random"],
        "trials_to_5pct_vs_random_defaults": reached["guided"] / reached["random_defaults"],
        "mean_curve_trials_to_5pct": {method: trials_to(curve) for method, curve in curves.items()},
        "worst_vs_random": worst_ratio(curves["guided"], curves["random"]),
        "rank_correlation": statistics.mean(correlations) if correlations else None,
        "spaces_cut_short": sum(row["configs"] < row["configs_asked"] for row in rows),
        "model_ms_per_round": 1e3 * statistics.mean(run.model_seconds for run in guided),
        "curves": curves,
    }


def describe(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """A table of both for people: time over the best of the space, in percent above it."""
    head = f"{'% above the best config after':<58} " + " ".join(f"{trials:>5}" for trials in _SHOWN) + "  to 5 %"
    lines = [head, "all tasks"]
    lines += [_line(method, curve, summary["trials_to_5pct"][method]) for method, curve in summary["curves"].items()]
    for row in rows:
        cut = f", {row['configs_asked']} asked for" if row["configs"] < row["configs_asked"] else ""
        lines.append(f"{row['task']} ({row['configs']} of {row['configs_of_templates']} configs{cut})")
        lines += [_line(m, row["curves"][m], row["trials_to_5pct"][m]) for m in ("random", "guided", "warm")]
    named = {name: value for name, value in summary.items() if isinstance(value, float)}
    lines += [f"{name} {value:.3f}" for name, value in named.items()]
    return "\n".join(lines)


def _line(method: str, curve: Sequence[float], reached: float) -> str:
    shown = [f"{100 * (curve[at - 1] - 1):5.1f}" if at <= len(curve) else "    -" for at in _SHOWN]
    return f"  {method:<56} {' '.join(shown)}  {reached:6.1f}"


def _gap(curve: Sequence[float], trials: int) -> float | None:
    value = curve[trials - 1] - 1 if trials <= len(curve) else math.nan
    return value if math.isfinite(value) else None
