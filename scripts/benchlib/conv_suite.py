"""The suite conv: the convolutions of two networks, in the layouts and with the epilogues that they have there."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import make_models
import msgspec

from benchlib.case import Case
from sparsetvm.core.target import Target
from sparsetvm.core.task import Task
from sparsetvm.rewrite.prepare import prepare

_NETWORKS = {"resnet50": make_models.resnet50, "mobilenet_v1": make_models.mobilenet_v1}
_SPARSITIES = (0.90, 0.95)


def convolutions(target: Target, networks: Sequence[str] = tuple(_NETWORKS)) -> list[Case]:
    """Every distinct shape of a pruned convolution, at batch 1: 1x1 and 3x3 of ResNet-50, 1x1 of MobileNetV1.

    A strided 1x1 convolution counts as the product on the pixels that it reads, which is how it is compiled.
    """
    return [
        Case(
            "conv",
            f"{task.workload.describe()} s={sparsity:.2f}",
            f"{network} {_window(task)},s={sparsity:.2f}",
            task.workload.n,
            sparsity,
            lambda _, task=task: task,  # type: ignore[misc]
        )
        for network in networks
        for sparsity in _SPARSITIES
        for task in _distinct(network, sparsity, target)
    ]


def _window(task: Task) -> str:
    conv = task.workload.conv
    return "" if conv is None else f"{conv.kernel[0]}x{conv.kernel[1]}"


@cache
def _distinct(network: str, sparsity: float, target: Target) -> list[Task]:
    with tempfile.TemporaryDirectory(prefix="sparsetvm-bench-") as folder:
        model = Path(folder) / "model.onnx"
        _NETWORKS[network](model, 1, sparsity)
        tasks = prepare(model, target).unique_tasks()
    found: dict[object, Task] = {}
    for task in tasks:
        workload = task.workload
        if workload.conv is not None and workload.pattern.kind != "dense":
            # Timed in a loop, as all suites are.
            task.workload = msgspec.structs.replace(workload, cold=False)
            found.setdefault((workload.conv, workload.m, workload.k), task)
    return list(found.values())
