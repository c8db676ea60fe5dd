"""Whatever a network looks like, on every target each of its layers has a schedule template, so a candidate."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import ModelBuilder
from random_networks import MORE_FROM, random_network
from sparsetvm.schedules.base import matching

from sparsetvm.core.target import Target, parse_target
from sparsetvm.frontend.load import load_model
from sparsetvm.rewrite.pipeline import rewrite
from sparsetvm.rewrite.workloads import make_tasks

TARGETS = [parse_target(text, 1) for text in ("cpu,znver4", "cpu,haswell", "cuda,sm_90")]
# The first convolution leaves out more columns than planes of one size share, and a 1x1 convolution reads it.
FAR_REACHING = (1796, 1888, 2524, 3892, 4090, 4504)
STEPS = ("1x1", "far", "residual", "strided", "depthwise", "3x3", "grouped", "twice", "pool", "relu", "norm")


def layers_without_template(builder: ModelBuilder, target: Target) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        graph = rewrite(load_model(builder.save(Path(folder) / "m.onnx")).graph, target)
    tasks = make_tasks(graph, target)
    assert tasks
    return [f"{name}: {task.workload}" for name, task in tasks.items() if not matching(task.workload, target)]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_every_layer_of_random_networks_has_a_template(target: Target) -> None:
    for seed in (*FAR_REACHING, *range(8), *range(MORE_FROM, MORE_FROM + 4)):
        assert not layers_without_template(random_network(seed, wide=True), target), seed


_axis = st.tuples(*(st.sampled_from(sizes) for sizes in ((1, 2, 3, 5), (1, 2, 3), (1, 1, 2, 3), (0, 1, 2), (0, 1, 2))))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine
@given(
    size=st.tuples(st.integers(9, 14), st.integers(9, 14)), axes=st.tuples(_axis, _axis),
    batch=st.sampled_from((1, 2, 16)), steps=st.lists(st.sampled_from(STEPS), min_size=2, max_size=6),
    target=st.sampled_from(TARGETS),
)  # fmt: skip
def test_what_follows_any_convolution_has_a_template(size, axes, batch, steps, target) -> None:  # type: ignore[no-untyped-def]
    """axes: kernel, dilation, stride and both pads, of rows and of columns."""
    b = ModelBuilder(opset=13)
    x = b.input("x", (batch, 3, *size))
    kernel, dilations, strides, before, after = (list(values) for values in zip(*axes, strict=True))
    kernel = [min(k, (n - 1) // d + 1) for k, n, d in zip(kernel, size, dilations, strict=True)]
    weight = b.const(b.weight((8, 3, *kernel), 27))
    x = b.op("Conv", x, weight, dilations=dilations, strides=strides, pads=before + after)
    for step in steps:
        x = _step(b, x, step)
    assert not layers_without_template(b.output(x), target)


def _step(b: ModelBuilder, x: str, step: str) -> str:
    """One more layer over 8 channels and any number of pixels."""
    if step in ("1x1", "strided"):
        return b.conv(x, 8, 8, 1, stride=1 + (step == "strided"), sparsity=0.5)
    if step == "far":
        return b.conv(x, 8, 8, 3, pad=5, dilation=5, sparsity=0.5)
    if step == "residual":
        return b.relu(b.op("Add", b.conv(x, 8, 8, 1, sparsity=0.5), x))
    if step == "twice":
        return b.op("Concat", b.conv(x, 8, 4, 1), b.conv(x, 8, 4, 3), axis=1)
    if step == "pool":
        return b.op("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    if step == "relu":
        return b.relu(x)
    if step == "norm":
        return b.batch_norm(x, 8)
    return b.conv(x, 8, 8, 3, groups={"3x3": 1, "grouped": 2, "depthwise": 8}[step], sparsity=0.5)
