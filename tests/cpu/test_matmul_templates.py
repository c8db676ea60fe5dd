"""Every matmul-like template computes what numpy computes in float64, for every epilogue, layout and odd shape."""

from __future__ import annotations

import numpy as np
import pytest
from sparsetvm.schedules.base import matching

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN, BatchTiles, Planes, PlaneTiles, Tiled
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import Target, cpu_flags
from sparsetvm.core.workload import FEW_TOKENS, ConvGeometry, Epilogue, Workload
from sparsetvm.rewrite.plane_geometry import conv_layouts, depthwise_pad, required_pad

AVX512 = Target("cpu", "skylake-avx512", "avx512")
AVX2 = Target("cpu", "x86-64-v3", "avx2")
TARGETS = [
    pytest.param(AVX512, id="avx512", marks=pytest.mark.skipif("avx512f" not in cpu_flags(), reason="no AVX-512 here")),
    pytest.param(AVX2, id="avx2", marks=pytest.mark.skipif("avx2" not in cpu_flags(), reason="no AVX2 here")),
]


def activate(y: np.ndarray, e: Epilogue) -> np.ndarray:
    from scipy.special import erf

    if e.activation == "gelu":
        return y * 0.5 * (1 + erf(y / np.sqrt(2)))
    if e.activation == "sigmoid":
        return 1 / (1 + np.exp(-y))
    if e.activation == "relu":
        return np.maximum(y, 0)
    if e.activation == "clip":
        return np.clip(y, e.low, e.high)
    return y


def run(template, workload: Workload, config: Config, target: Target, weight, bias, x, residual) -> np.ndarray:
    """Physical output of one kernel; the output buffer starts as NaN so that unwritten floats are seen."""
    import tvm

    packed = template.pack(weight, bias, workload, config, target)
    func = template.kernel(workload, config, packed, target, "kernel")
    built = tvm.compile(func, target=tvm.target.Target({"kind": "llvm", "mcpu": target.mcpu}))
    shape = workload.layout_out.physical_shape((workload.n, workload.m))
    out = tvm.runtime.tensor(np.full(shape, np.nan, np.float32))
    args = [x] + ([residual] if residual is not None else []) + list(packed.arrays)
    built["kernel"](*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in args], out)
    return out.numpy()


def sparse(rng, shape, density):
    weight = rng.standard_normal(shape).astype(np.float32)
    weight[rng.random(shape) >= density] = 0
    weight[min(3, shape[0] - 1)] = 0
    return weight


EPILOGUES = [
    Epilogue(),
    Epilogue(bias=True, activation="relu"),
    Epilogue(bias=True, residual=True, activation="clip", low=-0.5, high=1.5),
    Epilogue(bias=True, residual=True, activation="gelu"),
    Epilogue(residual=True, activation="sigmoid"),
]


def configs(template, workload, target):
    """The default and both ends of every knob."""
    space = template.space(workload, target)
    default = template.default(workload, target)
    assert space.contains(default)
    chosen = {default}
    for knob in space.knobs:
        chosen.add(default.replace(**{knob.name: knob.values[0]}))
        chosen.add(default.replace(**{knob.name: knob.values[-1]}))
    return sorted(chosen, key=str)


def check_matmul(target, n, m, k, epilogue, density, threads=1, seed=0, every=False):
    rng = np.random.default_rng(seed)
    weight, bias = sparse(rng, (m, k), density), rng.standard_normal(m).astype(np.float32)
    x, r = rng.standard_normal((n, k)).astype(np.float32), rng.standard_normal((n, m)).astype(np.float32)
    plain = n == 1 or (n <= FEW_TOKENS and target.isa == "avx512")
    lanes = next(v for v in (4, 8, 16) if v >= min(n, target.lanes))
    lin, lout = (PLAIN, PLAIN) if plain else (Tiled(n, k, lanes), Tiled(n, m, lanes))
    summary = PatternSummary("unstructured", (1, 1), float((weight != 0).mean()), 1.0, 1, "0")
    workload = Workload("matmul", m, k, n, lin, lout, epilogue, summary, threads=threads)
    want = x.astype(np.float64) @ weight.T.astype(np.float64)
    want = want + (bias if epilogue.bias else 0) + (r if epilogue.residual else 0)
    want = activate(want, epilogue)
    target = Target(target.kind, target.mcpu, target.isa, threads)
    xp, rp = (x, r) if plain else (lin.to_physical(x), lout.to_physical(r))
    templates = matching(workload, target)
    assert any(t.dense for t in templates)
    for template in templates:
        for config in configs(template, workload, target) if every else [template.default(workload, target)]:
            got = run(
                template, workload, config, target, weight, bias if epilogue.bias else None, xp,
                rp if epilogue.residual else None,
            )  # fmt: skip
            logical = got if plain else lout.to_logical(got, (n, m))
            error = np.linalg.norm(logical - want) / np.linalg.norm(want)
            assert error < 1e-5, (config, error)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("epilogue", EPILOGUES, ids=lambda e: f"{e.activation}-{int(e.residual)}")
@pytest.mark.parametrize("n", [1, 3, 7, 33])
def test_matmul_matches_float64_for_every_epilogue(target, n, epilogue):
    check_matmul(target, n, 37, 53, epilogue, 0.15)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("n", [1, 4, 48])
def test_matmul_matches_float64_for_the_ends_of_every_knob(target, n):
    check_matmul(target, n, 70, 450, Epilogue(bias=True, residual=True, activation="relu"), 0.1, every=True)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("n", [1, 2, 16, 80])
def test_matmul_matches_float64_with_two_threads(target, n):
    check_matmul(target, n, 130, 100, Epilogue(bias=True, activation="relu"), 0.1, threads=2)


def conv_reference(x, weight4, conv: ConvGeometry):
    batch, channels = x.shape[:2]
    top, left, bottom, right = conv.pads
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    out = np.zeros((batch, weight4.shape[0], conv.out_height, conv.out_width))
    per = channels // conv.groups
    rows = weight4.shape[0] // conv.groups
    for ky in range(conv.kernel[0]):
        for kx in range(conv.kernel[1]):
            y0, x0 = ky * conv.dilation[0], kx * conv.dilation[1]
            window = padded[
                :, :, y0 : y0 + conv.stride[0] * (conv.out_height - 1) + 1 : conv.stride[0],
                x0 : x0 + conv.stride[1] * (conv.out_width - 1) + 1 : conv.stride[1],
            ]  # fmt: skip
            for g in range(conv.groups):
                part = weight4[g * rows : (g + 1) * rows, :, ky, kx].astype(np.float64)
                out[:, g * rows : (g + 1) * rows] += np.einsum(
                    "mc,bchw->bmhw", part, window[:, g * per : (g + 1) * per]
                )
    return out


CONVS = {
    "1x1": ConvGeometry(6, 7, 9, (1, 1)),
    "3x3": ConvGeometry(5, 7, 7, (3, 3), pads=(1, 1, 1, 1)),
    "3x3 stride 2": ConvGeometry(5, 9, 8, (3, 3), (2, 2), (1, 1, 1, 1)),
    "5x5 valid": ConvGeometry(3, 12, 12, (5, 5)),
    "3x3 dilated": ConvGeometry(3, 10, 11, (3, 3), pads=(2, 2, 2, 2), dilation=(2, 2)),
    "3x2 uneven pads": ConvGeometry(3, 8, 6, (3, 2), (1, 2), (0, 1, 2, 0)),
    "groups": ConvGeometry(6, 7, 7, (3, 3), pads=(1, 1, 1, 1), groups=2),
    "7x7 stride 2": ConvGeometry(3, 20, 20, (7, 7), (2, 2), (3, 3, 3, 3)),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CONVS)
def test_conv2d_matches_float64_and_keeps_borders_zero(target, name):
    conv, m, batch = CONVS[name], 10, 2
    rng = np.random.default_rng(1)
    weight4 = sparse(rng, (m, conv.in_channels // conv.groups, *conv.kernel), 0.3)
    x = rng.standard_normal((batch, conv.in_channels, conv.in_height, conv.in_width)).astype(np.float32)
    bias = rng.standard_normal(m).astype(np.float32)
    lin, lout = conv_layouts(conv, batch, m, required_pad(conv), target.lanes)
    weight = weight4.reshape(m, -1)
    want = conv_reference(x, weight4, conv) + bias[:, None, None]
    residual = rng.standard_normal(want.shape).astype(np.float32)
    summary = PatternSummary("unstructured", (1, 1), 0.3, 1.0, 1, "0")
    for epilogue in (Epilogue(bias=True, activation="relu"), Epilogue(bias=True, residual=True, activation="sigmoid")):
        n = batch * conv.out_height * conv.out_width
        workload = Workload("conv2d", m, weight.shape[1], n, lin, lout, epilogue, summary, conv)
        full = activate(want + (residual if epilogue.residual else 0), epilogue)
        for template in matching(workload, target):
            config = template.default(workload, target)
            got = run(
                template, workload, config, target, weight, bias, lin.to_physical(x),
                lout.to_physical(residual) if epilogue.residual else None,
            )  # fmt: skip
            error = np.linalg.norm(lout.to_logical(got, want.shape) - full) / np.linalg.norm(full)
            assert error < 1e-5, (config, error)
            np.testing.assert_array_equal(got, lout.to_physical(lout.to_logical(got, want.shape)), err_msg=str(config))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("tiled", ["in", "out", "residual", "all"])
def test_pointwise_conv2d_mixes_planes_and_plane_tiles(target, tiled):
    conv, m, batch = ConvGeometry(6, 7, 9, (1, 1)), 10, 2
    rng = np.random.default_rng(1)
    weight = sparse(rng, (m, 6), 0.4)
    x = rng.standard_normal((batch, 6, 7, 9)).astype(np.float32)
    residual = rng.standard_normal((batch, m, 7, 9)).astype(np.float32)
    layouts = {
        name: (PlaneTiles if tiled in (name, "all") else Planes)(batch, channels, 7, 9, 1, target.lanes)
        for name, channels in (("in", 6), ("out", m), ("residual", m))
    }
    want = np.maximum(conv_reference(x, weight.reshape(m, 6, 1, 1), conv) + residual, 0)
    summary = PatternSummary("unstructured", (1, 1), 0.4, 1.0, 1, "0")
    workload = Workload(
        "conv2d", m, 6, batch * 63, layouts["in"], layouts["out"], Epilogue(residual=True, activation="relu"), summary,
        conv, layout_residual=layouts["residual"],
    )  # fmt: skip
    templates = matching(workload, target)
    assert templates
    for template in templates:
        config = template.default(workload, target)
        physical_in, physical_residual = layouts["in"].to_physical(x), layouts["residual"].to_physical(residual)
        got = run(template, workload, config, target, weight, None, physical_in, physical_residual)
        error = np.linalg.norm(layouts["out"].to_logical(got, want.shape) - want) / np.linalg.norm(want)
        assert error < 1e-5, (config, error)
        again = layouts["out"].to_physical(layouts["out"].to_logical(got, want.shape))
        np.testing.assert_array_equal(got, again, err_msg=str(config))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("1x1", "sigmoid"), ("3x3 stride 2", "relu"), ("3x3 dilated", "none"), ("3x2 uneven pads", "clip"),
        ("groups", "relu"),
    ],
)  # fmt: skip
def test_conv2d_with_images_in_lanes_matches_float64_and_keeps_borders_zero(target, name, activation):
    conv, m = CONVS[name], 10
    rng = np.random.default_rng(1)
    weight4 = sparse(rng, (m, conv.in_channels // conv.groups, *conv.kernel), 0.3)
    x = rng.standard_normal((target.lanes, conv.in_channels, conv.in_height, conv.in_width)).astype(np.float32)
    bias = rng.standard_normal(m).astype(np.float32)
    weight, size = weight4.reshape(m, -1), (conv.out_height, conv.out_width)
    lin = BatchTiles(conv.in_channels, conv.in_height, conv.in_width, depthwise_pad(conv), target.lanes)
    lout, lresidual = (BatchTiles(m, *size, pad, target.lanes) for pad in (1, 0))
    want = conv_reference(x, weight4, conv) + bias[:, None, None]
    residual = rng.standard_normal(want.shape).astype(np.float32)
    summary = PatternSummary("unstructured", (1, 1), 0.3, 1.0, 1, "0")
    epilogue = Epilogue(bias=True, residual=activation != "none", activation=activation, high=1.0)
    workload = Workload(
        "conv2d", m, weight.shape[1], target.lanes * size[0] * size[1], lin, lout, epilogue, summary, conv,
        layout_residual=lresidual,
    )  # fmt: skip
    full = activate(want + (residual if epilogue.residual else 0), epilogue)
    templates = matching(workload, target)
    assert {template.name for template in templates} >= {"x86.dense", "x86.pattern_data"}
    for template in templates:
        config = template.default(workload, target)
        packed = lresidual.to_physical(residual) if epilogue.residual else None
        got = run(template, workload, config, target, weight, bias, lin.to_physical(x), packed)
        error = np.linalg.norm(lout.to_logical(got, want.shape) - full) / np.linalg.norm(full)
        assert error < 1e-5, (config, error)
        np.testing.assert_array_equal(got, lout.to_physical(lout.to_logical(got, want.shape)), err_msg=str(config))
