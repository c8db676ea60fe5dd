"""Figures of benchmark results, as .svg files that are equal when the results are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchlib.markdown import LABELS
from benchlib.summary import Row, by_group, geomean
from sparsetvm.errors import EnvironmentProblem

_COLORS = ("#0b6e4f", "#d1495b", "#30638e", "#edae49", "#7d5ba6", "#888888")
_WIDTH, _HEIGHT, _BAR = 6.4, 3.4, 0.16  # inches; _BAR of one horizontal bar
_RUNTIMES = ("deepsparse", "openvino", "openvino-f32", "dense")
Plot = Callable[[Sequence[Row]], Any]


def draw(kernels: Mapping[str, Any] | None, models: Mapping[str, Any] | None, folder: Path) -> list[Path]:
    """Write the figures that the results allow; their paths. Raises EnvironmentProblem without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise EnvironmentProblem("matplotlib is not installed", hint="pip install -e '.[bench]'") from error
    mpl.use("svg")
    mpl.rcParams.update({
        "svg.hashsalt": "sparsetvm", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False,
        "axes.prop_cycle": mpl.cycler(color=_COLORS),
    })  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    of_suite = {
        suite: [row for row in (kernels or {}).get("rows", ()) if row["suite"] == suite and "error" not in row]
        for suite in ("anchors", "conv", "dlmc", "patterns")
    }
    networks = [row for row in (models or {}).get("rows", ()) if "onnxruntime" in row.get("speedup", ())]
    plots: dict[str, tuple[Plot, Sequence[Row]]] = {
        "anchors": (_anchors, of_suite["anchors"]),
        "conv": (_bars_by_group, of_suite["conv"]),
        "dlmc": (_sorted_by_file, of_suite["dlmc"]),
        "patterns": (_bars_by_group, of_suite["patterns"]),
        "models": (_models, networks),
    }
    return [_write(folder / f"{name}.svg", plot(rows)) for name, (plot, rows) in plots.items() if rows]


def _write(path: Path, figure: Any) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _figure(height: float = _HEIGHT, panels: int = 1) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, panels, figsize=(_WIDTH, height), layout="constrained")
    return figure, axes


def _factors(axis: Any) -> None:
    """Label an axis "2x", "4x", ..."""
    axis.set_major_formatter(lambda value, _: f"{value:g}x")


def _anchors(rows: Sequence[Row]) -> Any:
    """Speed-up by sparsity, a line for each N."""
    figure, axes = _figure()
    cells: dict[tuple[str, int, float], list[float]] = {}
    for row in rows:
        cells.setdefault((row["pattern"], row["n"], round(row["sparsity"], 2)), []).append(row["speedup"])
    sparsities = sorted({sparsity for _, _, sparsity in cells})
    at = {sparsity: place for place, sparsity in enumerate(sparsities)}
    for pattern, n in sorted(
        {(pattern, n) for pattern, n, _ in cells}, key=lambda key: (key[0] != "unstructured", key)
    ):
        points = [(at[s], geomean(cells[pattern, n, s])) for s in sparsities if (pattern, n, s) in cells]
        label = f"N = {n}" if pattern == "unstructured" else f"N = {n}, {pattern}"
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.plot([at[s] for s in sparsities], [1 / (1 - s) for s in sparsities], "--", color="#bbbbbb",
              label="products left out", zorder=0)  # fmt: skip
    axes.set_yscale("log", base=2)
    _factors(axes.yaxis)
    axes.set_xticks(list(at.values()), [f"{sparsity:.0%}" for sparsity in sparsities])
    axes.set_xlabel("zeros")
    axes.set_ylabel("speed-up over the best dense product")
    axes.legend()
    return figure


def _bars_by_group(rows: Sequence[Row]) -> Any:
    """Geometric mean of each group."""
    means = {group: geomean(row["speedup"] for row in members) for group, members in by_group(rows).items()}
    figure, axes = _figure(max(1.6, 0.7 + 2 * _BAR * len(means)))
    axes.barh(list(means), list(means.values()))
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    _factors(axes.xaxis)
    axes.set_xlabel("speed-up over the best dense kernel")
    return figure


def _sorted_by_file(rows: Sequence[Row]) -> Any:
    """Every matrix of every file: speed-up, and time over that of a random pattern."""
    figure, (speedups, ratios) = _figure(panels=2)
    for name, members in by_group(rows).items():
        share = [(place + 0.5) / len(members) for place in range(len(members))]
        speedups.plot(
            share, sorted(row["speedup"] for row in members), label=name.replace("__magnitude_pruning__", " ")
        )
        ratios.plot(share, sorted(row["ratio_to_random"] for row in members))
    speedups.set_yscale("log", base=2)
    _factors(speedups.yaxis)
    speedups.set_ylabel("speed-up over the best dense product")
    ratios.set_ylabel("time over that of a random pattern")
    for axes in (speedups, ratios):
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xlabel("share of the matrices")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    speedups.legend(fontsize=7)
    return figure


def _models(rows: Sequence[Row]) -> Any:
    """Speed-up over ONNX Runtime of ours and of the other runtimes."""
    others = [name for name in _RUNTIMES if any(name in row["baselines_ms"] for row in rows)]
    series = {"sparsetvm": [row["speedup"]["onnxruntime"] for row in rows]}
    for name in others:
        # A model that the runtime did not run has a bar of length 0.
        times = [row["baselines_ms"].get(name) for row in rows]
        ort = [row["baselines_ms"]["onnxruntime"] for row in rows]
        series[LABELS[name]] = [base / time if time else 0.0 for base, time in zip(ort, times, strict=True)]
    figure, axes = _figure(max(2.0, 0.9 + _BAR * (len(series) + 1) * len(rows)))
    height = 0.85 / len(series)
    for place, (label, values) in enumerate(series.items()):
        axes.barh(
            [at + (place - (len(series) - 1) / 2) * height for at in range(len(rows))], values, height, label=label
        )
    axes.set_yticks(range(len(rows)), [row["model"] for row in rows])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    _factors(axes.xaxis)
    axes.set_xlabel("speed-up over ONNX Runtime")
    figure.legend(loc="outside upper center", ncols=len(series))
    return figure
