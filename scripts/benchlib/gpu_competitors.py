"""What a layer is compared with on a GPU: cuBLAS and cuDNN in three precisions and cuSPARSE, through PyTorch.

Each product is tried as W X with X[k, n] and as X W^T with X[n, k]; the faster orientation counts. Convolutions are
tried in both memory formats. Bias, residual and activation are left out, which favours the competitors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchlib.torch_model import convolution
from benchlib.torch_timing import PRECISIONS, capture, dtype_of, precision, time_replays
from sparsetvm.core.task import Task
from sparsetvm.measure.timing import TimeCalls

_LAUNCHES = 50  # of one graph, as for our kernels


@dataclass(frozen=True)
class GpuCompetitor:
    """name: "torch-fp32", ...; timer: times it in a CUDA graph; y: its logical output."""

    name: str
    timer: TimeCalls
    y: np.ndarray


def gpu_competitors(task: Task, x: np.ndarray, names: list[str]) -> list[GpuCompetitor]:
    """Those of `names` that can run the layer on logical `x`, once per orientation; several may share a name."""
    found = []
    for kind in PRECISIONS:
        if f"torch-{kind}" in names:
            with precision(kind):
                found += [_competitor(f"torch-{kind}", *way) for way in _ways(task, x, dtype_of(kind))]
    if "cusparse" in names and task.workload.conv is None:
        found.append(_competitor("cusparse", *_cusparse(task, x)))
    return found


_Way = tuple[Callable[[], Any], Callable[[Any], Any]]


def _competitor(name: str, run: Callable[[], Any], logical: Callable[[Any], Any]) -> GpuCompetitor:
    graph = capture(run, _LAUNCHES)
    y = logical(run()).float().cpu().numpy()
    return GpuCompetitor(name, time_replays(graph.replay, _LAUNCHES), np.ascontiguousarray(y))


def _ways(task: Task, x: np.ndarray, dtype: str) -> list[_Way]:
    """(a call that returns Y, Y -> logical Y) of each orientation."""
    given, weight = _tensor(x, dtype), _tensor(task.weight, dtype)
    conv = task.workload.conv
    if conv is None:
        columns, rows = given.t().contiguous(), torch.empty(len(x), task.workload.m, dtype=given.dtype, device="cuda")
        y = torch.empty(task.workload.m, len(x), dtype=given.dtype, device="cuda")
        return [
            (lambda: torch.mm(weight, columns, out=y), lambda result: result.t()),
            (lambda: torch.mm(given, weight.t(), out=rows), lambda result: result),
        ]
    kernel = weight.reshape(task.workload.m, conv.in_channels // conv.groups, *conv.kernel)
    ways: list[_Way] = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        images = given.contiguous(memory_format=memory_format)
        run = convolution(conv, kernel.contiguous(memory_format=memory_format), None)
        ways.append((lambda run=run, images=images: run(images), lambda result: result))
    return ways


def _cusparse(task: Task, x: np.ndarray) -> _Way:
    sparse = _tensor(task.weight, "float32").to_sparse_csr()
    columns = _tensor(x, "float32").t().contiguous()
    return lambda: sparse @ columns, lambda result: result.t()


def _tensor(array: np.ndarray, dtype: str) -> Any:
    return torch.from_numpy(np.array(array)).to("cuda", getattr(torch, dtype))
