"""The interface of schedule templates, and the list of those that exist.

A template is one file. Every template file looks alike: docstring (what the kernel does, Requires), `matches`, `space`,
`default`, `pack`, `kernel`. A task's search space is the union of all templates that match, dense included.
"""

from __future__ import annotations

import abc
import functools
import importlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsetvm.core.arithmetic import TOLERANCES, Arithmetic
from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.space import Space

if TYPE_CHECKING:
    import tvm
    from sparsetvm.schedules.cuda.launch import Launch

# Imported by name, so that listing templates needs no TVM. Order: the first that matches and is preferred gives the
# default config, unless templates have estimates (search/candidates.py compares those).
_TEMPLATES: dict[str, tuple[str, str]] = {
    "x86.conv_columns": ("sparsetvm.schedules.x86.conv_columns", "ConvColumnsTemplate"),
    "x86.pattern_code": ("sparsetvm.schedules.x86.pattern_code", "PatternCode"),
    "x86.pattern_data": ("sparsetvm.schedules.x86.pattern_data", "PatternData"),
    "x86.spmv_columns": ("sparsetvm.schedules.x86.spmv_columns", "SpmvColumns"),
    "x86.gemv_columns": ("sparsetvm.schedules.x86.gemv_columns", "GemvColumns"),
    "x86.spmv_lookup": ("sparsetvm.schedules.x86.spmv_lookup", "SpmvLookup"),
    "x86.spmv_csr": ("sparsetvm.schedules.x86.spmv_csr", "SpmvCsr"),
    "x86.dense_gemv": ("sparsetvm.schedules.x86.dense_gemv", "DenseGemv"),
    "x86.dense_minimal": ("sparsetvm.schedules.x86.dense_minimal", "DenseMinimal"),
    "x86.dense_winograd": ("sparsetvm.schedules.x86.dense_winograd", "DenseWinograd"),
    "x86.dense_filters": ("sparsetvm.schedules.x86.dense_filters", "DenseFilters"),
    "x86.dense": ("sparsetvm.schedules.x86.dense", "Dense"),
    "cuda.spmv_columns": ("sparsetvm.schedules.cuda.spmv_columns", "SpmvColumns"),
    "cuda.spmv": ("sparsetvm.schedules.cuda.spmv", "Spmv"),
    "cuda.spmm_dispatch": ("sparsetvm.schedules.cuda.spmm_dispatch", "SpmmDispatch"),
    "cuda.spmm_data": ("sparsetvm.schedules.cuda.spmm_data", "SpmmData"),
    "cuda.spmm_rows": ("sparsetvm.schedules.cuda.spmm_rows", "SpmmRows"),
    "cuda.spmm_code": ("sparsetvm.schedules.cuda.spmm_code", "SpmmCode"),
    "cuda.block_tiles": ("sparsetvm.schedules.cuda.block_tiles", "BlockTiles"),
    "cuda.block_mma": ("sparsetvm.schedules.cuda.block_mma", "BlockMma"),
    "cuda.block_wgmma": ("sparsetvm.schedules.cuda.block_wgmma", "BlockWgmma"),
    "cuda.block_bf16": ("sparsetvm.schedules.cuda.block_bf16", "BlockBf16"),
    "cuda.block_tf32": ("sparsetvm.schedules.cuda.block_tf32", "BlockTf32"),
    "cuda.two_four": ("sparsetvm.schedules.cuda.two_four", "TwoFour"),
    "cuda.dense_gemv": ("sparsetvm.schedules.cuda.dense_gemv", "DenseGemv"),
    "cuda.dense_tf32": ("sparsetvm.schedules.cuda.dense_tf32", "DenseTf32"),
    "cuda.dense_wgmma": ("sparsetvm.schedules.cuda.dense_wgmma", "DenseWgmma"),
    "cuda.dense_bf16": ("sparsetvm.schedules.cuda.dense_bf16", "DenseBf16"),
    "cuda.dense_fp16": ("sparsetvm.schedules.cuda.dense_fp16", "DenseFp16"),
    "cuda.dense": ("sparsetvm.schedules.cuda.dense", "Dense"),
}
# What the first part of a template's name runs on.
_DEVICES = {"x86": "cpu", "cuda": "cuda"}


@dataclass(frozen=True)
class Packed:
    """What a kernel reads: constant 1-D arrays in argument order, and facts that shape the generated code."""

    arrays: tuple[np.ndarray, ...]
    meta: dict[str, Any] = field(default_factory=dict)


class Template(abc.ABC):
    """A schedule template. Instances have no state."""

    name: str
    version: int
    dense: bool = False  # True for templates that ignore zeros: the baseline that always competes
    arithmetic: Arithmetic = "float32"  # "tf32" only for workloads with `tf32`, "float16" with `fp16`, ...

    @property
    def tolerance(self) -> float:
        """Relative L2 error that a kernel of this template may have."""
        return TOLERANCES[self.arithmetic]

    def version_of(self, config: Config) -> int:
        """The version that records of this config have: another than `version` where only some configs changed."""
        return self.version

    @abc.abstractmethod
    def matches(self, workload: Workload, target: Target) -> bool:
        """True when `kernel` can implement the workload on the target."""

    def preferred(self, workload: Workload, target: Target) -> bool:
        """False where templates after this one have the better default config."""
        return True

    def estimate(self, workload: Workload, config: Config, target: Target) -> float | None:
        """Clocks that a launch is expected to take, None when nothing is known, infinity where the config cannot run.

        Of the sparse templates that are `preferred` and have an estimate, the one whose default has the smallest gives
        the default config of the task. So all count the same: from the end of the kernel before to that of this one.
        """
        return None

    def quick(self, workload: Workload) -> bool:
        """False where building takes far longer than usual: no default, and measured after others only."""
        return True

    def writes_in_place(self, workload: Workload, config: Config) -> bool:
        """True when the kernel may be given the residual as Y: it reads each element right before it writes it."""
        return False

    @abc.abstractmethod
    def space(self, workload: Workload, target: Target) -> Space:
        """The knobs and their values; every point of the space is a valid config."""

    @abc.abstractmethod
    def default(self, workload: Workload, target: Target) -> Config:
        """A config that is good without any tuning; a point of `space`."""

    def smallest_estimate(self, workload: Workload, target: Target) -> Config:
        """The config of the space with the smallest estimate, of equal ones the first; for templates that have one."""

        def clocks(config: Config) -> float:
            known = self.estimate(workload, config, target)
            return math.inf if known is None else known

        return min(self.space(workload, target), key=clocks)

    @abc.abstractmethod
    def pack(
        self, weight: np.ndarray, bias: np.ndarray | None, workload: Workload, config: Config, target: Target
    ) -> Packed:
        """Arrange the (m, k) float32 weight and the (m,) bias as the kernel reads them."""

    @abc.abstractmethod
    def kernel(
        self, workload: Workload, config: Config, packed: Packed, target: Target, symbol: str
    ) -> tvm.tirx.PrimFunc | Launch:
        """The kernel with global symbol `symbol`; on a GPU the launch of one.

        Arguments, in order: X, the residual (when the epilogue has one), the arrays of `packed`, Y. X, residual and Y
        have the physical shapes of the workload's layouts and are float32, or float16 where the layout is `half`;
        arrays are 1-D.
        """


@functools.cache
def template(name: str) -> Template:
    """The template of that name. Raises KeyError for an unknown name."""
    module, cls = _TEMPLATES[name]
    found: Template = getattr(importlib.import_module(module), cls)()
    return found


def template_names() -> tuple[str, ...]:
    """Names of all templates."""
    return tuple(_TEMPLATES)


def arithmetic_of(name: str) -> Arithmetic:
    """What kernels of that template compute in; float32 for templates that are not in the list (tests have some)."""
    return template(name).arithmetic if name in _TEMPLATES else "float32"


def ignores_zeros(name: str) -> bool:
    """True for dense templates; False for templates that are not in the list."""
    return name in _TEMPLATES and template(name).dense


def is_for(name: str, target: Target) -> bool:
    """True for templates of the target's kind of device, which the first part of a name says."""
    return _DEVICES.get(name.partition(".")[0], target.kind) == target.kind


def matching(workload: Workload, target: Target) -> list[Template]:
    """All templates that can implement the workload, the preferred ones first (see `Template.estimate`)."""
    found = [t for name in _TEMPLATES if is_for(name, target) and (t := template(name)).matches(workload, target)]
    return sorted(found, key=lambda t: not t.preferred(workload, target))
