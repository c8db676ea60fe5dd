"""The simplest kernel for a GPU, for tests of everything around kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sparsetvm.schedules.base import Packed, Template
from sparsetvm.schedules.cuda.launch import Launch

from sparsetvm.core.config import Config
from sparsetvm.core.layout import Tiled
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.knobs import Ordered
from sparsetvm.space.space import Space


class Rows(Template):
    """A dense product, one thread per output; with more than 48 KB of shared memory that nothing uses."""

    name = "cuda.test_rows"
    version = 1
    dense = True

    def matches(self, workload: Workload, target: Target) -> bool:
        return workload.op == "matmul" and workload.epilogue.activation in ("none", "relu")

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Ordered("block", (64, 128, 256)),))

    def default(self, workload: Workload, target: Target) -> Config:
        return Config.of(self.name, block=64)

    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        start = np.zeros(workload.m, np.float32) if bias is None else bias.astype(np.float32)
        return Packed((weight.reshape(-1), start))

    def kernel(self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str) -> Launch:
        m, k, n, block = workload.m, workload.k, workload.n, config.int("block")
        tiled = workload.layout_in
        steps = (1, tiled.lanes, 1, tiled.lanes) if isinstance(tiled, Tiled) else (k, 1, m, 1)
        epilogue = workload.epilogue
        defines = (("SP_RESIDUAL", int(epilogue.residual)), ("SP_RELU", int(epilogue.activation == "relu")))
        grid = (-(-m * n // block), 1, 1)
        source = str(Path(__file__).with_name("rows.cu"))
        return Launch(source, "rows", defines, grid, block, 64 << 10, scalars=(m, k, n, *steps))


TEMPLATES = {Rows.name: Rows()}
