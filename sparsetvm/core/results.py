"""What the public functions return. Field names are the keys of `--json` output: a contract, see docs/json.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from sparsetvm.core.html_table import html_of

JSON_SCHEMA = 1


class Result(msgspec.Struct, kw_only=True):
    """Base of all results; `schema` changes when a key is renamed or removed."""

    schema: int = JSON_SCHEMA

    def to_json(self) -> bytes:
        """Indented JSON with the documented keys."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html_of(self)


class LayerReport(msgspec.Struct, kw_only=True):
    """One constant-weight layer as `inspect` sees it.

    shape: of the workload in words; sparsity: share of zeros in [0, 1]; pattern: see PatternSummary.describe;
    expected_speedup: over dense, from the roofline; verdict: "sparse" or "dense"; reason: why, in one sentence;
    structure: what the pattern does not say (find_structure), "" where it says all; same_positions: the first layer
    of the model with non-zeros at the same places, "" where there is none before this one; shares_kernel: with it.
    share: of the time that all layers take with dense kernels, by the roofline; limit: what a sparse kernel would spend
    most of its time on (the keys of analysis/limits.py), "" where it stays dense.
    """

    name: str
    op: str
    shape: str
    sparsity: float
    pattern: str
    row_imbalance: float
    empty_rows: int
    nnz: int
    expected_speedup: float
    verdict: str
    reason: str
    structure: str = ""
    same_positions: str = ""
    shares_kernel: bool = False
    share: float = 0.0
    limit: str = ""


class LayerForecast(msgspec.Struct, kw_only=True):
    """What a layer would gain from a pattern.

    share: of the time of all layers of the dense model, as the roofline has it. speedup: over dense kernels for the
    layer as it is now; 1 where it would stay dense, None where nothing of the layer is left. source: "records", where
    both times were measured, or "roofline". pattern, sparsity: after pruning. l1_removed, ...: as in PruneReport;
    reason: why the layer was not pruned.
    """

    name: str
    shape: str
    share: float
    pattern: str
    sparsity: float
    speedup: float | None
    source: str
    pruned: bool
    reason: str
    l1_removed: float
    l2_removed: float
    l1_removed_unstructured: float
    l2_removed_unstructured: float


class PatternForecast(msgspec.Struct, kw_only=True):
    """What a model would gain from pruning it to a pattern.

    pattern: as asked for, with its sparsity ("block:4x1@0.9"). sparsity: share of zeros of the pruned layers. speedup:
    of the whole model over the same with dense kernels; layers_speedup: of its layers alone. from_records: share of
    their time whose factors were measured. kernels: tasks, layers that share one count once.
    """

    pattern: str
    sparsity: float
    speedup: float
    layers_speedup: float
    from_records: float
    kernels: int
    l1_removed: float
    l2_removed: float
    l1_removed_unstructured: float
    l2_removed_unstructured: float
    layers: list[LayerForecast]
    notes: list[str] = []


class InspectReport(Result, kw_only=True):
    """speedup: expected of the model over dense kernels, layers_speedup: of its layers alone; None without layers.

    what_if: a forecast for each pattern that was asked for. threads: of the target.
    """

    model: str
    target: str
    layers: list[LayerReport]
    notes: list[str] = []
    what_if: list[PatternForecast] = []
    speedup: float | None = None
    layers_speedup: float | None = None
    threads: int = 1


class LibraryLayer(msgspec.Struct, kw_only=True):
    """A layer of a compiled library, as the manifest has it (build/compile.py); times are None where unknown."""

    name: str
    workload: str = ""
    pattern: str = ""
    sparsity: float = 0.0
    config: str = ""
    arithmetic: str = "float32"
    source: str = ""
    why: str = ""
    best_us: float | None = None
    dense_us: float | None = None
    speedup: float | None = None


class LibraryReport(Result, kw_only=True):
    """What is in a compiled library. kernels: how many of ours it calls. inputs, outputs: name, shape, dtype."""

    library: str
    bytes: int
    model: str
    target: str
    threads: int
    versions: dict[str, str]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    layers: list[LibraryLayer]
    kernels: int


class TaskReport(msgspec.Struct, kw_only=True):
    """One task of a tune. source: tuned, exact, compatible, shipped, default or dense. Times in microseconds.

    arithmetic: of the choice, "float32", "tf32", ... rank_correlations: after each round, Spearman of the cost model's
    predictions and the times measured after them. reason: why a pruned layer got a dense kernel, else "".
    """

    name: str
    workload: str
    pattern: str
    sparsity: float
    count: int
    dense_us: float | None
    best_us: float | None
    speedup: float | None
    trials: int
    source: str
    config: str
    arithmetic: str = "float32"
    rank_correlations: list[float | None] = []
    reason: str = ""


class TuneReport(Result, kw_only=True):
    model: str
    target: str
    device: str
    threads: int
    trials_run: int
    reused: int
    seconds: float
    log: str
    seed: int
    statuses: dict[str, int]
    tasks: list[TaskReport]
    interrupted: bool = False
    output: str | None = None
    warnings: list[str] = []
    run: str = ""


class CompileReport(Result, kw_only=True):
    model: str
    target: str
    output: str
    manifest: str
    seconds: float
    layers: list[dict[str, Any]]


class OutputError(msgspec.Struct, kw_only=True):
    name: str
    rel_l2_error: float
    max_abs_error: float


class LayerError(msgspec.Struct, kw_only=True):
    """One layer beside ONNX Runtime, the worst over the inputs tried.

    terms: of its longest sum. of_bound: largest error / bound over the elements, for the layer alone on equal inputs;
    abs_error and bound are those of that element. model_error: relative L2 error beside the model's value of that name,
    None where the model has none. passed: of_bound <= 1, and model_error within the tolerance or a layer before wrong.
    """

    name: str
    op: str
    terms: int
    arithmetic: str
    of_bound: float
    abs_error: float
    bound: float
    model_error: float | None
    passed: bool


class VerifyReport(Result, kw_only=True):
    """rel_l2_error = ||y - ref||_2 / ||ref||_2, the worst over outputs and inputs tried. layers: with `per_layer`."""

    passed: bool
    tolerance: float
    rel_l2_error: float
    max_abs_error: float
    outputs: list[OutputError]
    notes: list[str] = []
    layers: list[LayerError] = []


class Latency(msgspec.Struct, kw_only=True):
    """Milliseconds per inference. median: p50; per_second: inferences in a second, of all instances together.

    percentiles: those that were asked for, "p95" -> milliseconds.
    """

    median: float
    p90: float
    p99: float
    min: float
    repeats: int
    per_second: float | None = None
    mean: float | None = None
    max: float | None = None
    percentiles: dict[str, float] = {}


class LayerTime(msgspec.Struct, kw_only=True):
    """One kernel of a compiled model as it runs: median microseconds, and its share in the sum of all.

    name, op: of the layer or operator; kernel: symbol in the library. See runtime/per_layer.py for what a time holds.
    """

    name: str
    op: str
    kernel: str
    us: float
    share: float


class BenchReport(Result, kw_only=True):
    """Competitors are interleaved with ours in one process; speedup = competitor median / our median.

    instances: so many of each ran at the same time. per_layer: of ours, in the order of the calls; empty unless asked
    for.
    """

    model: str
    threads: int
    latency_ms: Latency
    against: dict[str, Latency]
    speedup: dict[str, float]
    notes: list[str] = []
    per_layer: list[LayerTime] = []
    instances: int = 1


class PruneReport(Result, kw_only=True):
    """l1_removed, l2_removed: share of the norm of the pruned layers' weights; *_unstructured: what removing the
    smallest weights, as many of each layer, would take.
    """

    model: str
    output: str
    pattern: str
    sparsity: float
    layers: list[dict[str, Any]]
    l1_removed: float = 0.0
    l2_removed: float = 0.0
    l1_removed_unstructured: float = 0.0
    l2_removed_unstructured: float = 0.0


class PageReport(Result, kw_only=True):
    """An HTML report that was written: how much is in it and its size."""

    source: str
    output: str
    tasks: int
    records: int
    bytes: int
    notes: list[str] = []


class DoctorReport(Result, kw_only=True):
    """checks: name, ok, detail and, when not ok, the next step."""

    ok: bool
    checks: list[dict[str, Any]]


class Event(msgspec.Struct, kw_only=True):
    """Progress of a long call.

    kind: "start", "task_start", "trial", "round" (of trials), "task_end", "note", "warning", "compile", "end".
    """

    kind: str
    task: str = ""
    message: str = ""
    data: dict[str, Any] = {}


Progress = Callable[[Event], None]
