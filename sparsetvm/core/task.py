"""A task: a workload with the weights that it is measured with, and the layers that share it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sparsetvm.core.workload import Workload


@dataclass
class Task:
    """One tuning task. `weight` is (m, k) float32, `bias` (m,) or None; `layers` are the ONNX names that share it."""

    name: str
    workload: Workload
    weight: np.ndarray
    bias: np.ndarray | None
    layers: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many layers of the model are this task."""
        return max(1, len(self.layers))
