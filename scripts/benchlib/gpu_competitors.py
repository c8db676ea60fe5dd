"""What a layer is compared with on a GPU: cuBLAS and cuDNN in three precisions, cuSPARSE and for 2:4 cuSPARSELt,
through PyTorch, and for products with blocks of 16 x 16 and more a kernel in Triton.

Each product is tried as W X with X[k, n] and as X W^T with X[n, k]; the faster orientation counts. Convolutions are
tried in both memory formats, Triton with several tiles. Bias, residual and activation are left out, which favours the
competitors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchlib.block_csr import BLOCK_COMPETITORS, TWO_FOUR, tensor_core_block
from benchlib.kernel_row import Failed
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
    """Those of `names` that can run the layer on logical `x`, once per orientation or tile; several may share a name.

    Raises Failed when Triton cannot compile its kernel, for which it needs a C compiler.
    """
    found = []
    for kind in PRECISIONS:
        if f"torch-{kind}" in names:
            with precision(kind):
                found += [_competitor(f"torch-{kind}", *way) for way in _ways(task, x, dtype_of(kind))]
    if "cusparse" in names and task.workload.conv is None:
        found.append(_competitor("cusparse", *_cusparse(task, x)))
    if TWO_FOUR in names and task.workload.conv is None and task.workload.pattern.describe() == "2:4":
        found.append(_competitor(TWO_FOUR, *_two_four(task, x)))
    block = tensor_core_block(task.workload)
    if block is not None:
        for name in (name for name in BLOCK_COMPETITORS if name in names):
            found += _triton(name, task, x, block)
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


def _triton(name: str, task: Task, x: np.ndarray, block: tuple[int, int]) -> list[GpuCompetitor]:
    from benchlib.triton_block import block_products

    runs = block_products(task.weight, block, x, BLOCK_COMPETITORS[name])
    try:
        return [_competitor(name, run, lambda result: result.t()) for run in runs]
    except Exception as problem:  # whatever its compiler, and the one that this calls, have to say
        reason = str(problem).strip().splitlines()
        raise Failed(f"{name}: {reason[-1] if reason else type(problem).__name__}") from problem


def _cusparse(task: Task, x: np.ndarray) -> _Way:
    sparse = _tensor(task.weight, "float32").to_sparse_csr()
    columns = _tensor(x, "float32").t().contiguous()
    return lambda: sparse @ columns, lambda result: result.t()


def _two_four(task: Task, x: np.ndarray) -> _Way:
    """float16 on sparse tensor cores: PyTorch's semi-structured tensors, which call cuSPARSELt."""
    sparse = torch.sparse.to_sparse_semi_structured(_tensor(task.weight, "float16"))
    columns = _tensor(x, "float16").t().contiguous()
    return lambda: torch.mm(sparse, columns), lambda result: result.t()


def _tensor(array: np.ndarray, dtype: str) -> Any:
    return torch.from_numpy(np.array(array)).to("cuda", getattr(torch, dtype))
