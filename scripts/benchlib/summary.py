"""Summaries of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

_SLOWER = 0.98  # two timings of one kernel may differ by 2 %


def geomean(values: Iterable[float]) -> float:
    """Geometric mean of positive numbers; NaN of none."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def summarize_kernels(rows: Sequence[Row]) -> dict[str, Any]:
    """Geometric means by group, and how many rows are slower than the best dense competitor or failed.

    geomean_speedup: over the best dense competitor of each row. geomean_speedup_packed: the same with packing from and
    to row-major matrices inside. geomean_vs: on a GPU, over each competitor. geomean_vs_random: time over that of a
    random pattern, of groups that have one.
    """
    good = [row for row in rows if "error" not in row]
    summary: dict[str, Any] = {"geomean_speedup": _means(good, lambda row: row["speedup"])}
    packed = [row for row in good if row["ours_packed_us"] is not None]
    summary["geomean_speedup_packed"] = _means(packed, lambda row: row["best_dense_us"] / row["ours_packed_us"])
    random = [row for row in good if "ratio_to_random" in row]
    if random:
        summary["geomean_vs_random"] = _means(random, lambda row: row["ratio_to_random"])
    gpu = [row for row in good if any(name.startswith("torch-") for name in row.get("baselines_us", ()))]
    if gpu:
        names = dict.fromkeys(name for row in gpu for name in row["baselines_us"])
        summary["geomean_vs"] = {name: _means_over(gpu, name) for name in names}
    summary["slower_than_dense"] = sum(row["speedup"] < _SLOWER for row in good)
    summary["failed"] = len(rows) - len(good)
    return summary


def _means_over(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Group -> geometric mean of the speed-up over one competitor."""
    known = [row for row in rows if name in row["baselines_us"]]
    return _means(known, lambda row: row["baselines_us"][name] / row["ours_us"])


def by_group(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group -> its rows, in the order of the rows."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    return groups


def _means(rows: Sequence[Row], value: Callable[[Row], float]) -> dict[str, float]:
    """Group -> geometric mean of `value` of its rows."""
    return {group: geomean(map(value, members)) for group, members in by_group(rows).items()}


def summarize_models(rows: Sequence[Row]) -> dict[str, Any]:
    """Geometric means of the speed-ups, and how many models are slower than each baseline or failed."""
    good = [row for row in rows if "error" not in row]
    names = list(dict.fromkeys(name for row in good for name in row["speedup"]))
    factors = {name: [row["speedup"][name] for row in good if name in row["speedup"]] for name in names}
    return {
        "geomean_speedup": {name: geomean(values) for name, values in factors.items()},
        "slower": {name: sum(factor < 1 for factor in values) for name, values in factors.items()},
        "failed": len(rows) - len(good),
    }
