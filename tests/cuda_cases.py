"""Layers for CUDA templates, and their check against float64 through the emulator."""

from __future__ import annotations

import numpy as np
from emulator import run_launch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sparsetvm.schedules.base import Template

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN, AnyLayout, Tiled
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import Target
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.rewrite.plane_geometry import conv_layouts, required_pad

RELU = Epilogue(bias=True, activation="relu")
H100 = Target("cuda", "x86-64-v3", "sm_90", l2=50 << 20, host=False, sms=132, shared=227 << 10)


def sparse(rng: np.random.Generator, shape: tuple[int, ...], density: float) -> np.ndarray:
    """Random weight of that density in which one row is empty and one is full."""
    weight = rng.standard_normal(shape).astype(np.float32)
    weight[rng.random(shape) >= density] = 0
    weight[min(3, shape[0] - 1)] = 0
    weight[0] = rng.standard_normal(shape[1:])
    return weight


def summary(weight: np.ndarray) -> PatternSummary:
    return PatternSummary("unstructured", (1, 1), float((weight != 0).mean()), 1.0, 1, "0")


def product(n: int, m: int, k: int, epilogue: Epilogue, weight: np.ndarray, *, plain: bool = False) -> Workload:
    """A product of `n` tokens in the layouts that a GPU uses."""
    lanes = -(-n // 4) * 4
    lin, lout = (PLAIN, PLAIN) if plain else (Tiled(n, k, lanes), Tiled(n, m, lanes))
    return Workload("matmul", m, k, n, lin, lout, epilogue, summary(weight))


def convolution(conv: ConvGeometry, m: int, batch: int, epilogue: Epilogue, weight: np.ndarray) -> Workload:
    lin, lout = conv_layouts(conv, batch, m, required_pad(conv), 4)
    n = batch * conv.out_height * conv.out_width
    return Workload("conv2d", m, weight.shape[1], n, lin, lout, epilogue, summary(weight), conv)


def launch(
    template: Template, workload: Workload, config: Config, weight: np.ndarray, bias: np.ndarray | None,
    x: np.ndarray, residual: np.ndarray | None,
) -> np.ndarray:  # fmt: skip
    """Physical output; the buffer starts as NaN, so that floats that nobody writes are seen."""
    packed = template.pack(weight, bias, workload, config, H100)
    made = template.kernel(workload, config, packed, H100, "kernel")
    y = np.full(workload.layout_out.physical_shape((workload.n, workload.m)), np.nan, np.float32)
    run_launch(made, [x, *([residual] if residual is not None else []), *packed.arrays, y])
    return y


def check_product(
    template: Template, workload: Workload, config: Config, weight: np.ndarray, rng: np.random.Generator
) -> None:
    n, m, k, e = workload.n, workload.m, workload.k, workload.epilogue
    x, r = (rng.standard_normal((n, size)).astype(np.float32) for size in (k, m))
    bias = rng.standard_normal(m).astype(np.float32)
    want = x.astype(np.float64) @ weight.T.astype(np.float64)
    want = activate(want + bias * e.bias + r * e.residual, e)
    got = launch(
        template, workload, config, weight, bias if e.bias else None, stored(workload.layout_in, x),
        stored(workload.layout_out, r) if e.residual else None,
    )  # fmt: skip
    assert np.isfinite(got).all(), config
    logical = workload.layout_out.to_logical(got, (n, m)) if isinstance(workload.layout_out, Tiled) else got
    close(logical, want, config)


def examples(count: int) -> settings:
    """`count` random cases, the same in every run."""
    return settings(
        max_examples=count, deadline=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip


def check_products_of_any_shape(template: Template, config: Config, count: int) -> None:
    """Random sizes and densities, with bias and ReLU."""

    @examples(count)
    @given(st.integers(1, 140), st.integers(1, 80), st.integers(2, 150), st.floats(0.02, 0.6), st.integers(0, 99))
    def check(n: int, m: int, k: int, density: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        weight = sparse(rng, (m, k), density)
        check_product(template, product(n, m, k, RELU, weight), config, weight, rng)

    check()


def check_convolution(
    template: Template, workload: Workload, config: Config, weight: np.ndarray, rng: np.random.Generator
) -> None:
    conv, e, lin, lout = workload.conv, workload.epilogue, workload.layout_in, workload.layout_out
    x = rng.standard_normal((lin.batch, conv.in_channels, conv.in_height, conv.in_width)).astype(np.float32)
    bias = rng.standard_normal(workload.m).astype(np.float32)
    shape = (workload.m, conv.in_channels // conv.groups, *conv.kernel)
    want = conv_reference(x, weight.reshape(shape), conv)
    r = rng.standard_normal(want.shape).astype(np.float32)
    want = activate(want + bias[:, None, None] * e.bias + r * e.residual, e)
    got = launch(
        template, workload, config, weight, bias if e.bias else None, lin.to_physical(x),
        lout.to_physical(r) if e.residual else None,
    )  # fmt: skip
    logical = lout.to_logical(got, want.shape)
    close(logical, want, config)
    np.testing.assert_array_equal(got, lout.to_physical(logical), err_msg=f"zeros around the image, {config}")


def close(got: np.ndarray, want: np.ndarray, config: Config) -> None:
    error = np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)
    assert error < 2e-6, (config, error)


def stored(layout: AnyLayout, array: np.ndarray) -> np.ndarray:
    return layout.to_physical(array) if isinstance(layout, Tiled) else array


def activate(y: np.ndarray, e: Epilogue) -> np.ndarray:
    """The activation of `e` in float64."""
    from scipy.special import erf

    match e.activation:
        case "relu":
            return np.maximum(y, 0)
        case "clip":
            return np.clip(y, e.low, e.high)
        case "gelu":
            return y * 0.5 * (1 + erf(y / np.sqrt(2)))
        case "gelu_tanh":
            return y * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        case "sigmoid":
            return 1 / (1 + np.exp(-y))
        case "silu":
            return y / (1 + np.exp(-y))
        case "hard_swish":
            return y * np.clip(y / 6 + 0.5, 0, 1)
    return y


def conv_reference(x: np.ndarray, weight: np.ndarray, conv: ConvGeometry) -> np.ndarray:
    """float64 convolution of (batch, channels, h, w) with (m, channels / groups, kh, kw)."""
    top, left, bottom, right = conv.pads
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    per, rows = x.shape[1] // conv.groups, weight.shape[0] // conv.groups
    out = np.zeros((x.shape[0], weight.shape[0], conv.out_height, conv.out_width))
    span = tuple(conv.stride[axis] * (size - 1) + 1 for axis, size in enumerate((conv.out_height, conv.out_width)))
    for ky, kx in np.ndindex(*conv.kernel):
        y0, x0 = ky * conv.dilation[0], kx * conv.dilation[1]
        window = padded[:, :, y0 : y0 + span[0] : conv.stride[0], x0 : x0 + span[1] : conv.stride[1]]
        for g in range(conv.groups):
            part = weight[g * rows : (g + 1) * rows, :, ky, kx].astype(np.float64)
            out[:, g * rows : (g + 1) * rows] += np.einsum("mc,bchw->bmhw", part, window[:, g * per : (g + 1) * per])
    return out
