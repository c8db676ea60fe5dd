"""The float64 reference against plain loops, and everything that it must notice in a wrong output."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsetvm.core.layout import PLAIN, Planes, Tiled
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.measure.buffers import ALIGNMENT, GUARD, GuardedBuffer
from sparsetvm.measure.reference import (
    TOLERANCE,
    activate,
    make_reference,
    make_references,
    output_shape,
    to_logical,
    to_physical,
)
from sparsetvm.measure.timing import plan_repeats, time_interleaved, time_repeats

PATTERN = PatternSummary("unstructured", (1, 1), 0.2, 1.2, 0, "d")


def weights(m: int, k: int, density: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((m, k)).astype(np.float32)
    weight[rng.random((m, k)) >= density] = 0
    return weight, rng.standard_normal(m).astype(np.float32)


def matmul(n: int = 21, m: int = 13, k: int = 17, epilogue: Epilogue = Epilogue(), tiled: bool = True) -> Workload:  # noqa: B008
    lin, lout = (Tiled(n, k, 8), Tiled(n, m, 8)) if tiled else (PLAIN, PLAIN)
    return Workload("matmul", m, k, n, lin, lout, epilogue, PATTERN)


def conv2d(conv: ConvGeometry, m: int, batch: int = 2, epilogue: Epilogue = Epilogue()) -> Workload:  # noqa: B008
    sy, sx = conv.stride
    lin = Planes(
        batch, conv.in_channels, math.ceil(conv.in_height / sy), math.ceil(conv.in_width / sx), 3, 8, conv.stride
    )
    lout = Planes(batch, m, conv.out_height, conv.out_width, 3, 8)
    k = conv.in_channels // conv.groups * conv.kernel[0] * conv.kernel[1]
    return Workload("conv2d", m, k, batch * conv.out_height * conv.out_width, lin, lout, epilogue, PATTERN, conv)


def logical_inputs(workload: Workload, reference) -> np.ndarray:
    """X as (n, k) or the whole images, read back from what the kernels would be given."""
    if workload.conv is None:
        return to_logical(workload.layout_in, reference.x, (workload.n, workload.k)).astype(np.float64)
    c, lin = workload.conv, workload.layout_in
    image = np.zeros((lin.batch, c.in_channels, *lin.image_shape()))
    for y, x in np.ndindex(*lin.image_shape()):
        for channel in range(c.in_channels):
            at = lin.origin + lin.phase_tap(channel, y, x)
            image[:, channel, y, x] = reference.x.reshape(lin.batch, -1)[:, at]
    return image[:, :, : c.in_height, : c.in_width]


def naive_conv(x: np.ndarray, weight: np.ndarray, workload: Workload) -> np.ndarray:
    c = workload.conv
    per, rows = c.in_channels // c.groups, workload.m // c.groups
    out = np.zeros(output_shape(workload))
    w4 = weight.reshape(workload.m, per, *c.kernel).astype(np.float64)
    for b, o, oy, ox in np.ndindex(*out.shape):
        for i, ky, kx in np.ndindex(per, *c.kernel):
            y = oy * c.stride[0] + ky * c.dilation[0] - c.pads[0]
            xx = ox * c.stride[1] + kx * c.dilation[1] - c.pads[1]
            if 0 <= y < c.in_height and 0 <= xx < c.in_width:
                out[b, o, oy, ox] += w4[o, i, ky, kx] * x[b, (o // rows) * per + i, y, xx]
    return out


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_reference_of_matmul_is_the_product(tiled: bool, density: float) -> None:
    workload = matmul(tiled=tiled, epilogue=Epilogue(bias=True, residual=True))
    weight, bias = weights(13, 17, density)
    reference = make_reference(workload, weight, bias)
    residual = to_logical(workload.layout_out, reference.residual, (21, 13))
    want = logical_inputs(workload, reference) @ weight.T.astype(np.float64) + bias + residual
    np.testing.assert_allclose(reference.expected, want.T, rtol=1e-12)
    y = to_physical(workload.layout_out, want.astype(np.float32))
    assert reference.error(y) < 1e-7
    assert reference.fault(y) == ""


CONVS = {
    "1x1": ConvGeometry(4, 3, 5, (1, 1)),
    "3x3 padded": ConvGeometry(3, 5, 4, (3, 3), pads=(1, 1, 1, 1)),
    "3x3 stride 2": ConvGeometry(2, 7, 6, (3, 3), (2, 2), (1, 1, 1, 1)),
    "uneven": ConvGeometry(2, 6, 5, (3, 2), (1, 2), (0, 1, 2, 0)),
    "dilated": ConvGeometry(2, 7, 7, (3, 3), pads=(2, 2, 2, 2), dilation=(2, 2)),
    "groups": ConvGeometry(4, 5, 5, (3, 3), pads=(1, 1, 1, 1), groups=2),
    "depthwise": ConvGeometry(6, 4, 4, (3, 3), pads=(1, 1, 1, 1), groups=6),
}


@pytest.mark.parametrize("name", CONVS)
def test_reference_of_conv2d_matches_plain_loops(name: str) -> None:
    workload = conv2d(CONVS[name], 6)
    weight, _ = weights(6, workload.k, 0.4)
    reference = make_reference(workload, weight, None)
    want = naive_conv(logical_inputs(workload, reference), weight, workload)
    physical = to_physical(workload.layout_out, want.astype(np.float32))
    assert reference.error(physical) < 1e-7
    assert reference.fault(physical) == ""


@pytest.mark.parametrize(
    ("activation", "point", "value"),
    [
        ("none", -2.0, -2.0),
        ("relu", -2.0, 0.0),
        ("clip", 9.0, 6.0),
        ("gelu", 1.0, 0.8413447460685429),
        ("gelu_tanh", 1.0, 0.8411919906082768),
        ("sigmoid", 0.0, 0.5),
        ("silu", 1.0, 0.7310585786300049),
        ("hard_swish", 1.5, 1.125),
    ],
)
def test_reference_activations_match_known_values(activation: str, point: float, value: float) -> None:
    workload = matmul(n=1, m=1, k=1, tiled=False, epilogue=Epilogue(bias=True, activation=activation, high=6.0))
    reference = make_reference(workload, np.zeros((1, 1), np.float32), np.array([point], np.float32))
    assert reference.expected[0, 0] == pytest.approx(value, rel=1e-12)


def test_reference_notices_one_wrong_value() -> None:
    workload = conv2d(CONVS["3x3 padded"], 6)
    weight, _ = weights(6, workload.k)
    reference = make_reference(workload, weight, None)
    y = to_physical(workload.layout_out, naive_conv(logical_inputs(workload, reference), weight, workload)).astype("f4")
    good = y.copy()
    pixel = workload.layout_out.origin + 2
    y[1, 3, pixel] += 0.5
    assert reference.error(y) > TOLERANCE
    y[1, 3, pixel] = np.nan
    assert reference.error(y) == math.inf
    assert "never written" in reference.fault(y)
    good[0, 2, 0] = 1.0  # above the image
    assert "outside the image" in reference.fault(good)
    good[0, 2, 0] = 0.0
    good[0, 2, workload.layout_out.origin + workload.layout_out.width] = 1e-3  # between two rows
    assert "1 values outside the image" in reference.fault(good)


def test_reference_samples_positions_of_large_tasks_and_keeps_both_ends() -> None:
    workload = matmul(n=50_000, m=64, k=256, tiled=False)
    weight, _ = weights(64, 256)
    reference = make_reference(workload, weight, None)
    positions = reference.positions
    assert len(positions) < 50_000
    assert len(set(positions.tolist())) == len(positions)
    assert positions[:64].tolist() == list(range(64))
    assert positions[-64:].tolist() == list(range(50_000 - 64, 50_000))
    y = (reference.x.astype(np.float64) @ weight.T.astype(np.float64)).astype(np.float32)
    assert reference.error(y) < 1e-6
    y[-1, 3] += 100
    assert reference.error(y) > TOLERANCE


def test_reference_notices_a_small_weight_with_the_wrong_sign_in_a_large_product() -> None:
    """Its share of the whole result is far below the tolerance of that."""
    workload = matmul(n=64, m=512, k=512, tiled=False)
    weight, _ = weights(512, 512, 0.1)
    at = tuple(np.argwhere(weight)[1000])
    weight[at] = 2e-4
    reference = make_reference(workload, weight, None)
    mutant = weight.copy()
    mutant[at] *= -1
    right, wrong = ((reference.x.astype(np.float64) @ w.T).astype(np.float32) for w in (weight, mutant))
    assert reference.fault(right) == ""
    assert reference.error(wrong) < TOLERANCE
    assert f"1 of 512 rows are wrong, the first is row {at[0]}" in reference.fault(wrong)


@pytest.mark.parametrize(("n", "count"), [(1, 16), (3, 8), (4, 4), (15, 4), (16, 1), (500, 1)])
def test_few_positions_are_compared_on_several_inputs(n: int, count: int) -> None:
    workload = matmul(n=n, tiled=False, epilogue=Epilogue(bias=True, activation="relu"))
    weight, bias = weights(13, 17)
    references = make_references(workload, weight, bias)
    assert len(references) == count
    # No ReLU hides a row that has weights: it is positive for some input, unless its bias says otherwise.
    seen = np.concatenate([reference.expected for reference in references], axis=1).max(axis=1)
    assert (seen[np.count_nonzero(weight, axis=1) > 0] > 0).all()


def test_reference_lets_no_stretch_of_a_large_task_pass_unseen() -> None:
    workload = matmul(n=50_000, m=64, k=256, tiled=False)
    weight, _ = weights(64, 256)
    positions = make_reference(workload, weight, None).positions
    assert np.diff(positions).max() <= 2 * -(-50_000 // len(positions))


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "sigmoid", "silu"])
@pytest.mark.parametrize(("n", "k", "density"), [(1, 4608, 1.0), (1, 64, 0.05), (200, 512, 0.1), (7, 4608, 0.3)])
def test_float32_in_any_order_is_within_the_limits_of_all_rows(n: int, k: int, density: float, activation: str) -> None:
    workload = matmul(n=n, m=200, k=k, tiled=False, epilogue=Epilogue(bias=True, activation=activation))
    weight, bias = weights(200, k, density)
    weight[3] = 0
    weight[4] *= 1e-4
    reference = make_reference(workload, weight, bias)
    total = np.zeros((n, 200), np.float32)
    for column in np.random.default_rng(1).permutation(k):  # one by one, the worst order that kernels have
        total += reference.x[:, column, None] * weight[None, :, column]
    y = activate((total + bias).astype(np.float32), workload.epilogue).astype(np.float32)
    assert reference.fault(y) == ""
    assert reference.error(y) < TOLERANCE


def test_reference_is_the_same_for_a_seed() -> None:
    workload = matmul()
    weight, bias = weights(13, 17)
    a, b, c = (make_reference(workload, weight, bias, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.x, b.x)
    assert not np.array_equal(a.x, c.x)


@pytest.mark.parametrize("shape", [(3, 5), (1,), (7, 1, 9)])
def test_guarded_buffer_is_aligned_and_notices_writes_outside(shape: tuple[int, ...]) -> None:
    buffer = GuardedBuffer.of(np.ones(shape, np.float32))
    assert buffer.array.ctypes.data % ALIGNMENT == 0
    assert buffer.array.shape == shape
    assert buffer.intact()
    buffer.array[...] = 7
    assert buffer.intact()
    for at in (-GUARD, -1, buffer.array.nbytes, buffer.array.nbytes + GUARD - 1):
        damaged = GuardedBuffer(shape, np.float32)
        damaged._raw[damaged._start + at] = 0
        assert not damaged.intact()


def test_plan_makes_repeats_of_two_milliseconds_within_the_budget() -> None:
    assert plan_repeats(1e-6, 5, 1.0).number == pytest.approx(2000, abs=1)
    assert plan_repeats(1e-6, 5, 1.0).repeats == 5
    assert (plan_repeats(0.4, 5, 1.0).number, plan_repeats(0.4, 5, 1.0).repeats) == (1, 2)
    assert plan_repeats(30.0, 5, 1.0).repeats == 1


def test_time_repeats_gives_microseconds_per_call() -> None:
    calls = []
    times = time_repeats(lambda number: calls.append(number) or 5e-5, 4, 1.0)
    assert times == pytest.approx((50.0,) * 4)
    assert calls[-4:] == [40] * 4


def test_time_interleaved_gives_each_kernel_one_time_per_round_in_the_given_order() -> None:
    kernels = [lambda number: 1e-5, lambda number: 2e-5]
    orders = [[1, 0], [0, 1]]
    times = [(at, us) for at, us in time_interleaved(kernels, orders, 1.0) if us is not None]
    assert [at for at, _ in times] == [1, 0, 0, 1]
    assert [us for _, us in times] == pytest.approx([20.0, 10.0, 10.0, 20.0])
