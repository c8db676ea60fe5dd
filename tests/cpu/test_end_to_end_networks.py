"""Networks compiled with default kernels compute what ONNX Runtime computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from end_to_end import check_against_onnxruntime
from models import ModelBuilder, bert, bottleneck_net, conv_net, mlp, mobile_net, shrinking_net
from random_networks import random_network

from sparsetvm.core.layout import BatchTiles
from sparsetvm.core.target import cpu_flags, parse_target
from sparsetvm.rewrite import split_batch
from sparsetvm.rewrite.prepare import prepare

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")


# Chosen so that all layouts, both kinds of networks and several batch sizes occur.
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 5, 7, 9, 11, 12, 44, 50])
def test_random_network_matches_onnxruntime(seed: int, tmp_path: Path) -> None:
    check_against_onnxruntime(random_network(seed), tmp_path)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("sparsity", [0.0, 0.75])
def test_layers_of_one_pattern_keep_weights_of_their_own(batch: int, sparsity: float, tmp_path: Path) -> None:
    builder = mlp((16, 16, 16, 16), batch=batch, sparsity=0.0)
    mask = np.random.default_rng(5).random((16, 16)) >= sparsity
    for tensor in builder.initializers:
        if len(tensor.dims) == 2:
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32).reshape(16, 16) * mask).tobytes()
    check_against_onnxruntime(builder, tmp_path)


@pytest.mark.parametrize("tokens", [1, 3])
def test_few_tokens_of_rank_three_with_residual_match_onnxruntime(tokens: int, tmp_path: Path) -> None:
    b = ModelBuilder("token", seed=2)
    x = b.input("x", (1, tokens, 20))
    y = b.relu(b.op("Add", b.linear(x, 20, 20, sparsity=0.8), x))
    b.op("Identity", b.linear(y, 20, 7), out="y")
    check_against_onnxruntime(b.output("y"), tmp_path)


@pytest.mark.parametrize("make", [conv_net, mobile_net, bert], ids=["conv", "mobile", "bert"])
def test_batch_in_chunks_matches_onnxruntime(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(split_batch, "_CHUNK_BYTES", 1)
    check_against_onnxruntime(make(batch=3), tmp_path)


@pytest.mark.parametrize("threads", [1, 2])
def test_batch_whose_chunks_grow_matches_onnxruntime(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_batch, "_CHUNK_BYTES", 7_000 // threads)  # one sample at 12x12
    builder = shrinking_net(batch=8)
    target = parse_target("cpu", threads)
    graph = prepare(builder.save(tmp_path / "m.onnx"), target).graph
    assert [node.attrs["count"] for node in graph.nodes if node.op == "gather"] == [8]
    check_against_onnxruntime(builder, tmp_path, threads=threads)


def test_load_runs_the_new_code_when_a_path_is_compiled_again(tmp_path: Path) -> None:
    for seed in (1, 2, 1):
        check_against_onnxruntime(mlp((12, 16, 4), seed=seed), tmp_path)


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 16, 17, 32])
def test_small_images_of_any_batch_match_onnxruntime(batch: int, tmp_path: Path) -> None:
    """Of 16 and 32 images, and of 8 with AVX2, one lies in each lane."""
    check_against_onnxruntime(bottleneck_net(batch=batch), tmp_path, threads=1 + batch % 2)


def test_chunks_that_grow_into_lanes_match_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two values are gathered, from chunks of one image."""
    monkeypatch.setattr(split_batch, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(split_batch, "_BYTES_PER_CLOCK", 1000)  # worth it for these few channels
    monkeypatch.setattr(split_batch, "_LANES_BYTES", 16 * 6500)  # 12 channels at 7x7, not 8 at 14x14
    builder = bottleneck_net(batch=16, size=28, stem_stride=2)
    target = parse_target("cpu", 1)
    graph = prepare(builder.save(tmp_path / "m.onnx"), target).graph
    gathers = [node for node in graph.nodes if node.op == "gather"]
    assert len(gathers) == 2
    assert all(isinstance(graph.values[node.outputs[0]].layout, BatchTiles) for node in gathers)
    check_against_onnxruntime(builder, tmp_path)


def test_pools_and_products_of_images_in_lanes_match_onnxruntime(tmp_path: Path) -> None:
    """A sigmoid would write over the zeros around the image: it leaves the lanes and comes back."""
    b = ModelBuilder("mixed", seed=6)
    x = b.relu(b.conv(b.input("x", (16, 3, 7, 7)), 3, 8, sparsity=0.5))
    x = b.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    left, right = b.conv(x, 8, 8, sparsity=0.5), b.op("Sigmoid", b.op("AveragePool", x, kernel_shape=[1, 1]))
    x = b.op("Sigmoid", b.op("Mul", left, right))
    builder = b.output(b.conv(x, 8, 4, sparsity=0.5), x)
    graph = prepare(builder.save(tmp_path / "m.onnx"), parse_target("cpu", 1)).graph
    kinds = {node.op for node in graph.nodes if isinstance(graph.values[node.outputs[0]].layout, BatchTiles)}
    assert kinds >= {"conv2d", "MaxPool", "AveragePool", "Mul"}
    check_against_onnxruntime(builder, tmp_path)
