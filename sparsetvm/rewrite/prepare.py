"""From a model file to layers with workloads: what every command starts with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsetvm.analysis.integer_inputs import integer_inputs
from sparsetvm.analysis.symbolic_axis import Mask
from sparsetvm.core.graph import Graph
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.frontend.transfer import load_limited
from sparsetvm.rewrite.pipeline import rewrite
from sparsetvm.rewrite.workloads import make_tasks


@dataclass
class Prepared:
    """A rewritten model. tasks: layer name -> task, in execution order; layers of one task share the object."""

    path: Path
    digest: str
    graph: Graph
    tasks: dict[str, Task]
    notes: list[str]

    def unique_tasks(self) -> list[Task]:
        """Each task once, in execution order."""
        return list({id(task): task for task in self.tasks.values()}.values())


def prepare(
    model: str | Path,
    target: Target,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    sizes: Mapping[str, int] | None = None,
    masks: Sequence[Mask] = (),
) -> Prepared:
    """Load and rewrite `model` for `target`. Raises ModelError when the model is rejected.

    sizes: of symbolic dimensions, by name. masks: where padded positions must not count (rewrite/mask_padding.py).
    """
    loaded = load_limited(model, shapes, sizes)
    loaded.graph.integers = integer_inputs(loaded.graph)
    graph = rewrite(loaded.graph, target, masks)
    tasks = make_tasks(graph, target)
    notes = [*loaded.notes, *graph.notes]
    if graph.float16:
        products = "; products may round to it" if target.kind == "cuda" else ""
        notes.append(f"the model is float16: between its inputs and outputs it is computed in float32{products}")
    if not any(task.workload.pattern.kind != "dense" for task in tasks.values()):
        notes.append("nothing in this model is pruned: it compiles as a dense model")
    if target.kind == "cpu" and target.isa != "avx512":
        notes.append(f"target {target} has no AVX-512: the AVX2 kernels are used, which gain less from sparsity")
    return Prepared(loaded.path, loaded.digest, graph, tasks, notes)
