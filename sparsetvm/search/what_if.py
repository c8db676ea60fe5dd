"""What a model would gain from a pattern, before anyone retrains it: prune it by magnitude, then predict every layer.

Both times of a layer come from tuning records where the log has them for its shape and such a pattern; else the
roofline says how they relate. Nothing is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsetvm.analysis.magnitude import PrunePattern, parse_goal
from sparsetvm.analysis.prune import prune_model
from sparsetvm.analysis.rest_time import rest_time
from sparsetvm.analysis.roofline import best_time, dense_time
from sparsetvm.core.results import LayerForecast, PatternForecast
from sparsetvm.core.target import DeviceFingerprint, Target
from sparsetvm.core.workload import Workload
from sparsetvm.frontend.names import display_name
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.rewrite.prepare import Prepared, prepare
from sparsetvm.search.candidates import candidates_of, known_dense, validator

Goal = tuple[PrunePattern, float]
_COSTS = ("l1_removed", "l2_removed", "l1_removed_unstructured", "l2_removed_unstructured")


def parse_goals(texts: Sequence[str], sparsity: float | None) -> list[Goal]:
    """The patterns and sparsities of "PATTERN[@SPARSITY]" texts; `sparsity` is for those that say none.

    N:M patterns have their own. Raises UsageError.
    """
    return [parse_goal(text, None if text.startswith("n:m:") else sparsity) for text in texts]


@dataclass(frozen=True)
class Forecaster:
    """Predicts what patterns gain. dense: the model as it is now; index, device: where measured times come from."""

    dense: Prepared
    target: Target
    shapes: Mapping[str, tuple[int, ...]] | None
    index: RecordIndex
    device: DeviceFingerprint

    def forecast(self, goal: Goal) -> PatternForecast:
        """Prune a copy of the model to the goal and predict its layers. Raises what `prune_model` and `prepare` do."""
        pattern, sparsity = goal
        with tempfile.TemporaryDirectory(prefix="sparsetvm-what-if-") as folder:
            path = Path(folder) / "pruned.onnx"
            report = prune_model(self.dense.path, path, sparsity, str(pattern))
            pruned = prepare(path, self.target, self.shapes)
        runs = self.dense.graph.node_runs()
        times = {name: dense_time(task.workload, self.target) * runs[name] for name, task in self.dense.tasks.items()}
        whole = sum(times.values())
        rows = {row["name"]: row for row in report.layers}
        layers = [self._layer(name, pruned, times[name] / whole, rows) for name in times]
        left = whole * sum(layer.share / layer.speedup for layer in layers if layer.speedup is not None)
        total = left + rest_time(pruned.graph, self.target)
        return PatternForecast(
            pattern=f"{pattern}@{sparsity:.4g}",
            sparsity=report.sparsity,
            speedup=(whole + rest_time(self.dense.graph, self.target)) / total if total else 1.0,
            layers_speedup=whole / left if left else 1.0,
            from_records=sum(layer.share for layer in layers if layer.source == "records"),
            kernels=len(pruned.unique_tasks()),
            **{key: getattr(report, key) for key in _COSTS},
            layers=layers,
            notes=[note for note in pruned.graph.notes if note not in self.dense.graph.notes],
        )

    def _layer(self, name: str, pruned: Prepared, share: float, rows: Mapping[str, dict[str, Any]]) -> LayerForecast:
        before = self.dense.tasks[name].workload
        task = pruned.tasks.get(name)
        origin = next(node.origin for node in self.dense.graph.nodes if node.name == name)
        row = next((rows[known] for part in origin if (known := display_name(part)) in rows), {})
        often = self.dense.graph.node_runs()[name] / pruned.graph.node_runs().get(name, 1)
        speedup, source = (None, "roofline") if task is None else self._speedup(before, task.workload, often)
        return LayerForecast(
            name=name,
            shape=before.describe(),
            share=share,
            pattern="removed" if task is None else task.workload.pattern.describe(),
            sparsity=1.0 if task is None else task.workload.pattern.sparsity,
            speedup=speedup,
            source=source,
            pruned=bool(row.get("pruned", False)),
            reason=str(row.get("reason", "")),
            **{key: float(row.get(key, 0.0)) for key in _COSTS},
        )

    def _speedup(self, before: Workload, after: Workload, chunks: float) -> tuple[float, str]:
        """(how much faster than dense kernels now, where that comes from). chunks: runs before over runs after."""
        dense, best = self._dense_us(before), self._best_us(after)
        if dense is not None and best is not None:
            return dense / best * chunks, "records"
        return dense_time(before, self.target) / best_time(after, self.target) * chunks, "roofline"

    def _dense_us(self, workload: Workload) -> float | None:
        record = known_dense(self.index, workload, candidates_of(workload, self.target), self.device)
        return None if record is None else record.best_us

    def _best_us(self, workload: Workload) -> float | None:
        """Time of the kernel that `compile` would take from the log."""
        candidates = candidates_of(workload, self.target)
        record = self.index.best(workload, self.device, validator(candidates)).record
        return None if record is None else record.best_us
