"""From a model with a dimension of open size to one rewritten network for each bucket.

The file is read once per bucket, with that size for the dimension; everything behind it sees static shapes. Two
readings side by side say where the dimension lies and which nodes need masks (analysis/symbolic_axis.py). A bucket that
`split_batch` would run in chunks is replaced by the chunk, or by as many images as the last layers gather where those
fill their lanes: slices of that size are what it would run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparsetvm.analysis.symbolic_axis import SymbolicAxes, trace
from sparsetvm.core.buckets import MaskInput, checked_buckets
from sparsetvm.core.graph import Graph
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.errors import UsageError, did_you_mean
from sparsetvm.frontend.names import display_name, display_names
from sparsetvm.frontend.transfer import load_limited, symbolic_dims_limited
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.prepare import Prepared, prepare
from sparsetvm.rewrite.widen_float16 import widen_float16

Shapes = Mapping[str, tuple[int, ...]]
Buckets = Sequence[int] | Mapping[str, Sequence[int]]
"""Sizes of the only open dimension, or of the one that is named."""
_UNNAMED = "batch"


@dataclass
class Family:
    """The networks of one model. Without an open dimension there is one member, and the rest says nothing.

    sizes: the bucket of each member, ascending. axes: input or output -> the axis of the dimension.
    """

    members: list[Prepared]
    dimension: str = ""
    sizes: tuple[int, ...] = ()
    axes: dict[str, int] = field(default_factory=dict)
    splits: bool = False

    @property
    def largest(self) -> Prepared:
        """The member that stands for all where only names and the file matter."""
        return self.members[-1]

    @property
    def notes(self) -> list[str]:
        """What the user should know, each sentence once."""
        return list(dict.fromkeys(note for member in self.members for note in member.notes))

    @property
    def masks(self) -> tuple[MaskInput, ...]:
        """Further inputs of the members of at least 2 positions."""
        return tuple(self.largest.graph.padding.values())

    def describe(self) -> list[str]:
        """One sentence about the open dimension, nothing without one."""
        if not self.sizes:
            return []
        sizes = ", ".join(map(str, self.sizes))
        how = "of any size, in slices of" if self.splits else f"of up to {self.sizes[-1]}, padded behind masks to"
        name = display_name(self.dimension)
        return [f"dimension '{name}' may be {how} {sizes}; the layers are those of {self.sizes[-1]}"]

    def unique_tasks(self) -> list[Task]:
        """Each task of all members once, in execution order."""
        return list({id(task): task for member in self.members for task in member.unique_tasks()}.values())


def prepare_family(
    model: str | Path, target: Target, shapes: Shapes | None = None, buckets: Buckets | None = None
) -> Family:
    """Load and rewrite `model` for `target`, once for each bucket (once where there are none).

    Raises UsageError when the model has no such dimension, ModelError when it is rejected or cannot be padded.
    """
    if buckets is None:
        return Family([prepare(model, target, shapes)])
    wanted, given = next(iter(buckets.items())) if isinstance(buckets, Mapping) else (None, buckets)
    if isinstance(buckets, Mapping) and len(buckets) != 1:
        raise UsageError("--buckets: one dimension may stay open", hint="fix the others with --shape")
    sizes = checked_buckets(given)
    name = _dimension(model, wanted, shapes)
    found, graph = _trace(model, name, sizes, shapes)
    family = Family([], name or _UNNAMED, splits=found.splits)
    family.axes = {value: axes[0] for value, axes in _interface(found, graph).items()}
    _add_members(family, model, target, shapes, name, sizes, found)
    share_tasks(family)
    return family


def _dimension(model: str | Path, wanted: str | None, shapes: Shapes | None) -> str:
    """The name of the dimension that stays open, "" for those without a name."""
    dims = symbolic_dims_limited(model, shapes)
    if not dims:
        raise UsageError(
            "--buckets: no input of the model has a symbolic dimension",
            hint="leave it out, or export the model with a dynamic batch or sequence axis",
        )
    names = [name or _UNNAMED for name in dims]
    if wanted is not None:
        chosen = "" if wanted == _UNNAMED and wanted not in dims else wanted
    elif len(dims) == 1:
        (chosen,) = dims
    else:
        fixed = {name for name, users in dims.items() if users.keys() <= (shapes or {}).keys()}
        rest = [name for name in dims if name not in fixed]
        if len(rest) != 1:
            raise UsageError(
                f"--buckets: the model has several symbolic dimensions: {display_names(names)}",
                hint=f"name one, as in --buckets {display_name(names[0])}=1,8,64; --shape fixes the others",
            )
        (chosen,) = rest
    if chosen not in dims:
        raise UsageError(
            f"--buckets: no symbolic dimension '{display_name(str(wanted))}'{did_you_mean(str(wanted), names)}",
            hint=f"the model has {display_names(names)}",
        )
    if chosen == "" and any(axes != [0] for axes in dims[""].values()):
        raise UsageError(
            "--buckets: several symbolic dimensions have no name",
            hint="export the model with names for them (dynamic_axes of torch.onnx.export)",
        )
    return chosen


def _trace(model: str | Path, name: str, sizes: Sequence[int], shapes: Shapes | None) -> tuple[SymbolicAxes, Graph]:
    """Where the dimension lies, from two sizes of at least 2 that differ: buckets, where there are such."""
    probes = [size for size in sizes if size > 1][-2:]
    if len(probes) == 1:
        probes.append(probes[0] - 1 if probes[0] > 2 else 3)
    first, second = probes or [2, 3]
    graphs = []
    for size in (first, second):
        graph = load_limited(model, shapes, {name: size}).graph
        widen_float16(graph)
        canonicalize(graph)
        graphs.append(graph)
    return trace(graphs[0], graphs[1], (first, second), name or _UNNAMED), graphs[0]


def _interface(found: SymbolicAxes, graph: Graph) -> dict[str, tuple[int, ...]]:
    return {name: found.axes[name] for name in (*graph.inputs, *graph.outputs) if name in found.axes}


def _add_members(
    family: Family,
    model: str | Path,
    target: Target,
    shapes: Shapes | None,
    name: str,
    sizes: Sequence[int],
    found: SymbolicAxes,
) -> None:
    """Prepare the buckets, or the chunks that they would run in."""
    members: dict[int, Prepared] = {}
    waiting, notes = list(sizes), []
    while waiting:
        size = waiting.pop()
        if size in members:
            continue
        member = prepare(model, target, shapes, sizes={name: size}, masks=found.masks if size > 1 else ())
        chunk = _chunk(size, member.graph, target)
        if chunk < size and family.splits:
            notes.append(f"{size} positions run in slices of {chunk}, which the caches hold")
            waiting.append(chunk)
        else:
            members[size] = member
    family.sizes = tuple(sorted(members))
    family.members = [members[size] for size in family.sizes]
    family.largest.notes.extend(notes)


def _chunk(size: int, graph: Graph, target: Target) -> int:
    """The slice that a bucket runs in: what the last layers gather, where that fills their lanes, else the first's."""
    last = size // graph.slices
    return last if last >= target.lanes else size // graph.chunks


def share_tasks(family: Family) -> None:
    """One task for equal workloads of all members; names say the bucket where there are several."""
    known: dict[str, Task] = {}
    for size, member in zip(family.sizes, family.members, strict=True):
        suffix = f"@{size}" if len(family.members) > 1 else ""
        for task in member.unique_tasks():
            layers = [f"{layer}{suffix}" for layer in task.layers]
            shared = known.setdefault(task.workload.id, task)
            if shared is task:
                task.name, task.layers = f"{task.name}{suffix}", layers
                continue
            shared.layers += layers
            member.tasks = {name: shared if own is task else own for name, own in member.tasks.items()}
