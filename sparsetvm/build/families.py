"""From the networks of a model to its library: choose, then compile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsetvm.build.bucket_cost import bucket_costs
from sparsetvm.build.choose import choose, choose_dense
from sparsetvm.build.compile import compile_networks
from sparsetvm.build.network import LayerChoice, Network, Opened
from sparsetvm.core.buckets import Dynamic
from sparsetvm.core.target import DeviceFingerprint, Target
from sparsetvm.core.task import Task
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.rewrite.prepare_buckets import Family
from sparsetvm.search.outcome import TaskOutcome


def choose_networks(
    family: Family,
    target: Target,
    index: RecordIndex,
    device: DeviceFingerprint,
    *,
    reuse: bool = True,
    outcomes: Sequence[TaskOutcome] = (),
) -> list[Network]:
    """Each member with a choice for every layer: what tuning found, else the log, else the default."""
    return [
        Network(member.graph, member.tasks, choose(member.tasks, target, index, device, reuse=reuse, outcomes=outcomes))
        for member in family.members
    ]


def dense_networks(family: Family, target: Target) -> list[Network]:
    """Each member with dense kernels only."""
    return [Network(member.graph, member.tasks, choose_dense(member.tasks, target)) for member in family.members]


def write_library(
    family: Family, networks: Sequence[Network], target: Target, output: Path, *, separate: bool = False
) -> Path:
    """Compile to `output`; returns the path of the manifest."""
    opened = None
    if family.sizes:
        costs = bucket_costs(networks, target)
        opened = Opened(Dynamic(family.dimension, family.sizes, family.splits, costs, family.masks), family.axes)
    largest = family.largest
    model = {"name": largest.path.name, "sha256": largest.digest}
    return compile_networks(networks, target, output, model, separate=separate, opened=opened)


def named_layers(family: Family, networks: Sequence[Network]) -> dict[str, tuple[Task, LayerChoice]]:
    """Every layer with its task and choice; the names say the bucket ("conv1@8") where there are several."""
    suffixes = [f"@{size}" for size in family.sizes] if len(family.members) > 1 else [""] * len(networks)
    return {
        f"{name}{suffix}": (network.tasks[name], choice)
        for suffix, network in zip(suffixes, networks, strict=True)
        for name, choice in network.choices.items()
    }
