"""A workload: operator, shapes, layouts, epilogue and a summary of the weight pattern. Records are matched on it.

Both operators are one computation, written in "taps":
    Y[m, p] = activation(sum_k W[m, k] * X[tap(k) + p] + bias[m] + residual[m, p])
For "matmul" k runs over the features of a token p; for "conv2d" k = (c, ky, kx) and p runs over the output grid.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import msgspec

from sparsetvm.core.layout import AnyLayout
from sparsetvm.core.pattern import PatternSummary

# Products of up to this many tokens are in plain layouts where the target has kernels whose lanes are output rows.
FEW_TOKENS = 4
FEW_TOKENS_CUDA = 8

# Two per octave: a record serves the densities nearby. Above the last one X counts as dense.
ACTIVATION_DENSITIES = (1 / 64, 3 / 128, 1 / 32, 3 / 64, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8)

Activation = Literal["none", "relu", "clip", "gelu", "gelu_tanh", "sigmoid", "silu", "hard_swish"]


class Epilogue(msgspec.Struct, frozen=True):
    """What happens to the sum, in this order: + bias, + residual, activation. `low`, `high`: the bounds of "clip"."""

    bias: bool = False
    residual: bool = False
    activation: Activation = "none"
    low: float = 0.0
    high: float = 0.0


class ConvGeometry(msgspec.Struct, frozen=True):
    """A 2-D convolution: pads are (top, left, bottom, right), in ONNX order; shapes are those of one image."""

    in_channels: int
    in_height: int
    in_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def pointwise(self) -> bool:
        """True for an ungrouped 1x1 convolution that reads exactly the pixel it writes."""
        return self.kernel == (1, 1) == self.stride and not any(self.pads) and self.groups == 1

    @property
    def out_height(self) -> int:
        return self._out(0, self.in_height)

    @property
    def out_width(self) -> int:
        return self._out(1, self.in_width)

    def _out(self, axis: int, size: int) -> int:
        window = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (size + self.pads[axis] + self.pads[axis + 2] - window) // self.stride[axis] + 1


class Workload(msgspec.Struct, frozen=True):
    """One task of the autotuner.

    op: "matmul" (X[n, k] times W[m, k]^T) or "conv2d".
    m: output features or channels. k: reduction length of one output (in_channels / groups * kh * kw for conv2d).
    n: tokens for matmul; batch * out_height * out_width for conv2d.
    layout_in, layout_out: of X and Y; layout_residual: None when it is that of Y.
    cold: whether code and weights come from beyond L2, as in a network that is too large for it; timed accordingly.
    activation_density: non-zeros of X by its size, one of ACTIVATION_DENSITIES, where X is known to hold many zeros.
    Times are taken with such an X. Unset, it is in no JSON: workloads without it keep the identity they had before.
    tf32, fp16, bf16: whether kernels may round the factors of its products to TF32, float16, bfloat16. Times with and
    without are never mixed. The last is unset where they may not, for the sake of identity too.
    """

    op: Literal["matmul", "conv2d"]
    m: int
    k: int
    n: int
    layout_in: AnyLayout
    layout_out: AnyLayout
    epilogue: Epilogue
    pattern: PatternSummary
    conv: ConvGeometry | None = None
    dtype: str = "float32"
    threads: int = 1
    cold: bool = False
    layout_residual: AnyLayout | None = None
    tf32: bool = False
    fp16: bool = False
    activation_density: float | msgspec.UnsetType = msgspec.UNSET
    bf16: Literal[True] | msgspec.UnsetType = msgspec.UNSET

    @property
    def residual_layout(self) -> AnyLayout:
        return self.layout_out if self.layout_residual is None else self.layout_residual

    def canonical(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces. The identity of the workload."""
        return msgspec.json.encode(self, order="deterministic")

    @property
    def id(self) -> str:
        """Digest of the workload with its pattern digest: equal id = exactly the same task."""
        return hashlib.sha256(self.canonical()).hexdigest()[:16]

    @property
    def family(self) -> str:
        """Digest of everything but the numbers of the pattern (its kind and block stay): the "compatible" relation."""
        bare = msgspec.structs.replace(self.pattern, density=0.0, row_imbalance=0.0, empty_rows=0, digest="")
        family = msgspec.structs.replace(self, pattern=bare)
        return hashlib.sha256(family.canonical()).hexdigest()[:16]

    @property
    def active(self) -> float:
        """Share of X that is expected not to be zero."""
        return 1.0 if self.activation_density is msgspec.UNSET else self.activation_density

    @property
    def dense_flops(self) -> int:
        """Floating-point operations of the dense computation (multiply and add count one each)."""
        return 2 * self.m * self.k * self.n

    @property
    def nnz(self) -> int:
        return round(self.pattern.density * self.m * self.k)

    @property
    def activation_bytes(self) -> float:
        """X read, Y written and the residual read once, 4 bytes an element."""
        inputs = self.k * self.n
        if self.conv is not None:
            conv = self.conv
            images = max(1, self.n // (conv.out_height * conv.out_width))
            inputs = images * conv.in_channels * conv.in_height * conv.in_width
        outputs = self.m * self.n * (2 if self.epilogue.residual else 1)
        return 4.0 * (inputs + outputs)

    def describe(self) -> str:
        """One line for tables, e.g. "conv2d 3x3 64->64 56x56" or "matmul 768x3072 n=128"."""
        if self.conv is None:
            return f"matmul {self.m}x{self.k} n={self.n}"
        c = self.conv
        stride = f"/{c.stride[0]}" if c.stride != (1, 1) else ""
        groups = f" g{c.groups}" if c.groups > 1 else ""
        return (
            f"conv2d {c.kernel[0]}x{c.kernel[1]}{stride} {c.in_channels}->{self.m} {c.out_height}x{c.out_width}{groups}"
        )


def activation_level(density: float) -> float | msgspec.UnsetType:
    """The value of `Workload.activation_density` for a measured density: the nearest level, unset above the last."""
    if density > 1.2 * ACTIVATION_DENSITIES[-1]:
        return msgspec.UNSET
    return min(ACTIVATION_DENSITIES, key=lambda level: abs(math.log(max(density, 1e-9) / level)))
