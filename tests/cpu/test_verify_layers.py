"""`verify --per-layer`: correct kernels stay within the bound, a wrong weight does not, whatever was fused or cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dead_filters import dead_conv_net
from end_to_end import compile_default
from models import ModelBuilder, bert, conv_net, mlp, mobile_net, shrinking_net
from onnx import numpy_helper
from random_networks import random_network

import sparsetvm
from sparsetvm.core.results import LayerError, VerifyReport
from sparsetvm.core.target import cpu_flags
from sparsetvm.errors import UsageError
from sparsetvm.rewrite import split_batch

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")


def verified(builder: ModelBuilder, folder: Path) -> VerifyReport:
    library = compile_default(builder, folder)
    return sparsetvm.verify(library, folder / f"{builder.name}.onnx", samples=1, per_layer=True)


@pytest.mark.parametrize("make", [conv_net, mobile_net, bert, dead_conv_net, lambda: random_network(4)])
def test_each_layer_of_a_network_stays_within_its_bound(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    report = verified(make(), tmp_path)
    assert report.passed, report
    assert all(layer.of_bound < 0.5 and layer.bound > 0 for layer in report.layers)
    assert any(layer.model_error is not None for layer in report.layers)


def strided_conv() -> ModelBuilder:
    builder = ModelBuilder("strided", seed=0)
    x = builder.input("x", (1, 3, 34, 40))
    builder.op("Relu", builder.conv(x, 3, 20, 7, stride=2, pad=3), out="y")
    return builder.output("y")


def conv_and_residual() -> ModelBuilder:
    builder = ModelBuilder("rows", seed=0)
    x = builder.input("x", (2, 24, 14, 14))
    builder.op("Relu", builder.op("Add", builder.conv(x, 24, 24, 3, pad=1), x), out="y")
    return builder.output("y")


@pytest.mark.skipif("avx512f" not in cpu_flags(), reason="needs AVX-512")
@pytest.mark.parametrize(
    ("make", "name"), [(strided_conv, "x86.dense_minimal"), (conv_and_residual, "x86.dense_winograd")]
)
def test_minimal_filtering_has_a_bound_of_its_own(
    make: Callable[[], ModelBuilder], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsetvm.schedules.base import template

    report = verified(make(), tmp_path)
    (layer,) = report.layers
    assert layer.passed
    assert 0 < layer.of_bound < 0.5
    kernel = type(template(name))
    pack = kernel.pack
    monkeypatch.setattr(kernel, "pack", lambda self, w, *rest: pack(self, w * np.float32(1.0005), *rest))
    assert not verified(make(), tmp_path).layers[0].passed


@pytest.mark.skipif("avx512f" not in cpu_flags(), reason="needs AVX-512")
def test_a_pooled_convolution_has_a_bound_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsetvm.schedules.x86.remainder import pooled_conv

    builder = ModelBuilder("pooled", seed=0)
    y = builder.op("Relu", builder.conv(builder.input("x", (2, 3, 15, 14)), 3, 20, 5, pad=1))
    y = builder.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    builder.op("Identity", y, out="y")
    report = verified(builder.output("y"), tmp_path)
    (layer,) = report.layers
    assert (layer.op, layer.passed) == ("pooled_conv2d", True)
    assert 0 < layer.of_bound < 0.5
    pack = pooled_conv.pack_pooled_conv
    monkeypatch.setattr(pooled_conv, "pack_pooled_conv", lambda w, *rest: pack(w * np.float32(1.0005), *rest))
    assert not verified(builder, tmp_path).passed


def test_outputs_of_nothing_but_zeros_are_named(tmp_path: Path) -> None:
    builder = ModelBuilder("zeros", seed=0)
    x = builder.input("x", (4, 32))
    y = builder.op("Relu", builder.linear(x, 32, 16, sparsity=0.9), out="y")
    builder.op("Mul", y, builder.const(np.zeros(16, np.float32)), out="z")
    report = verified(builder.output("y", "z"), tmp_path)
    assert report.passed
    assert ["'z'" in note and "'y'" not in note for note in report.notes if "--per-layer" in note] == [True]


def test_chunks_of_a_batch_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_batch, "_CHUNK_BYTES", 1)
    assert verified(conv_net(batch=2), tmp_path).passed


def test_values_on_both_sides_of_a_gather_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_batch, "_CHUNK_BYTES", 7_000)  # one sample at 12x12, eight behind it
    assert verified(shrinking_net(batch=8), tmp_path).passed


def change_one_weight(builder: ModelBuilder, at: int, share: float) -> None:
    """Change the largest weight of weight number `at` by a share of itself."""
    tensor = [tensor for tensor in builder.initializers if len(tensor.dims) > 1][at]
    data = numpy_helper.to_array(tensor).copy()
    largest = np.unravel_index(np.argmax(np.abs(data)), data.shape)
    data[largest] *= np.float32(1 + share)
    tensor.CopyFrom(numpy_helper.from_array(data, tensor.name))


def test_a_wrong_weight_is_found_in_its_layer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packed weights of one layer are wrong by 1 in 10,000: too little for the tolerance, not for the bound."""
    from sparsetvm.schedules.x86.dense_gemv import DenseGemv
    from sparsetvm.schedules.x86.spmv_lookup import SpmvLookup

    for template in (DenseGemv, SpmvLookup):
        right = template.pack

        def wrong(self, weight, *rest, right=right):  # type: ignore[no-untyped-def]
            return right(self, weight * np.float32(1.0001) if weight.shape[0] == 24 else weight, *rest)

        monkeypatch.setattr(template, "pack", wrong)
    report = verified(mlp((16, 24, 8), sparsity=0.5), tmp_path)
    assert not report.passed
    assert [layer.passed for layer in report.layers] == [False, True]
    assert report.layers[0].of_bound > 1
    assert report.layers[1].of_bound <= 1


def test_another_model_is_refused(tmp_path: Path) -> None:
    library = compile_default(mlp((12, 16, 4)), tmp_path)
    other = mlp((12, 16, 4))
    change_one_weight(other, 0, 0.5)
    with pytest.raises(UsageError, match="is not the model"):
        sparsetvm.verify(library, other.save(tmp_path / "other.onnx"), per_layer=True)


def test_bound_grows_with_the_length_of_the_sums(tmp_path: Path) -> None:
    def bound(width: int) -> LayerError:
        (layer, *_) = verified(mlp((width, 8, 4), sparsity=0.0), tmp_path).layers
        return layer

    short, long = bound(16), bound(256)
    assert (short.terms, long.terms) == (18, 258)
    assert long.bound > 4 * short.bound
