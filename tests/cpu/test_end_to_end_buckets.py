"""One library runs any size: from an ONNX file with a symbolic dimension to outputs equal to ONNX Runtime's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import ModelBuilder, bert, bottleneck_net, conv_net, mlp, run_onnxruntime

import sparsetvm
from sparsetvm.core.buckets import pieces
from sparsetvm.core.target import host_target
from sparsetvm.errors import ModelError, UsageError
from sparsetvm.rewrite import split_batch
from sparsetvm.runtime.module import Module


def compiled(builder: ModelBuilder, folder: Path, **options: Any) -> tuple[Path, Path]:
    """(model, library)."""
    path = builder.save(folder / "m.onnx")
    sparsetvm.compile(path, folder / "m.so", threads=1, log_dir=folder, **options)
    return path, folder / "m.so"


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return compiled(mlp(batch="N"), tmp_path_factory.mktemp("batch"), buckets=(1, 8))


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Attention that is fused in the larger bucket only."""
    return compiled(bert(batch=1, seq="S"), tmp_path_factory.mktemp("seq"), buckets={"S": (1, 8, 33)})


def check(model: Path, library: Path, feed: dict[str, np.ndarray]) -> None:
    with sparsetvm.load(library) as module:
        ours = module.run(feed)
    for name, expected in run_onnxruntime(model, feed).items():
        assert ours[name].shape == expected.shape
        assert np.linalg.norm(ours[name] - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 33, 1000])
def test_batch_of_any_size_equals_onnxruntime(batches: tuple[Path, Path], size: int) -> None:
    rng = np.random.default_rng(size)
    check(*batches, {"x": rng.standard_normal((size, 20)).astype(np.float32)})


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 32, 33])
def test_sequence_of_any_length_equals_onnxruntime(sequences: tuple[Path, Path], size: int) -> None:
    rng = np.random.default_rng(size)
    hidden = rng.standard_normal((1, size, 32)).astype(np.float32)
    check(*sequences, {"hidden_states": hidden, "attention_bias": np.zeros((1, 1, 1, size), np.float32)})


def test_hidden_rows_of_a_mask_hide_real_tokens_and_not_padded_ones(sequences: tuple[Path, Path]) -> None:
    """The model's own mask of -inf everywhere but at one token."""
    hidden = np.random.default_rng(0).standard_normal((1, 20, 32)).astype(np.float32)
    bias = np.full((1, 1, 1, 20), np.finfo(np.float32).min, np.float32)
    bias[..., 3] = 0
    check(*sequences, {"hidden_states": hidden, "attention_bias": bias})


def test_manifest_says_the_dimension_and_its_buckets(batches: tuple[Path, Path]) -> None:
    _, library = batches
    manifest = json.loads(library.with_name("m.so.json").read_bytes())
    assert manifest["dynamic"]["name"] == "N"
    assert manifest["dynamic"]["buckets"] == [1, 8]
    assert manifest["inputs"] == [{"name": "x", "shape": [8, 20], "dtype": "float32", "axis": 0}]
    assert {layer["bucket"] for layer in manifest["layers"]} == {1, 8}


def test_function_of_one_bucket_may_be_called_alone(batches: tuple[Path, Path]) -> None:
    """As a C++ program does, without sparsetvm and without the dispatcher."""
    import tvm
    from tvm.runtime.vm import VirtualMachine

    model, library = batches
    machine = VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())
    x = np.random.default_rng(0).standard_normal((8, 20)).astype(np.float32)
    (expected,) = run_onnxruntime(model, {"x": x}).values()
    for function in ("main_8", "main"):
        np.testing.assert_allclose(machine[function](tvm.runtime.tensor(x)).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [(8, 3, 8, 33, 1, 3), (33, 20, 1, 8, 20)])
def test_runs_of_other_sizes_in_between_leave_nothing_behind(
    sequences: tuple[Path, Path], order: tuple[int, ...]
) -> None:
    """Sizes share the memory of a bucket; NaN that one run leaves there must not reach the padding of another."""
    model, library = sequences
    rng = np.random.default_rng(0)
    with sparsetvm.load(library) as module:
        for size in order:
            bias = np.zeros((1, 1, 1, size), np.float32)
            module(np.full((1, size, 32), np.nan, np.float32), bias)
            feed = {"hidden_states": rng.standard_normal((1, size, 32)).astype(np.float32), "attention_bias": bias}
            (ours,), (expected,) = module.run(feed).values(), run_onnxruntime(model, feed).values()
            assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)


def test_wrong_inputs_are_found_after_right_ones(batches: tuple[Path, Path]) -> None:
    with Module(batches[1]) as module:
        right = np.zeros((8, 20), np.float32)
        module(right)
        with pytest.raises(UsageError, match="expected float32, given float64"):
            module(right.astype(np.float64))
        with pytest.raises(UsageError, match="expected shape 8x20"):
            module(np.zeros((8, 21), np.float32))
        assert module(right[:3]).shape == (3, 10)


def test_manifest_with_a_bucket_that_the_library_lacks_is_refused(batches: tuple[Path, Path], tmp_path: Path) -> None:
    library = tmp_path / "m.so"
    library.write_bytes(batches[1].read_bytes())
    manifest = json.loads(batches[1].with_name("m.so.json").read_bytes())
    manifest["dynamic"]["buckets"] = [2, 8]
    library.with_name("m.so.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="lacks the function 'main_2'"):
        Module(library)


def test_runtime_alone_refuses_sizes_that_cannot_run(sequences: tuple[Path, Path]) -> None:
    import tvm
    from tvm.runtime.vm import VirtualMachine

    machine = VirtualMachine(tvm.runtime.load_module(str(sequences[1])), tvm.cpu())
    long = [tvm.runtime.tensor(np.zeros(shape, np.float32)) for shape in ((1, 34, 32), (1, 1, 1, 34))]
    with pytest.raises(RuntimeError, match="the largest size is 33"):
        machine["main"](*long)


def test_errors_name_the_input_and_the_dimension(batches: tuple[Path, Path], sequences: tuple[Path, Path]) -> None:
    with Module(batches[1]) as module:
        with pytest.raises(UsageError, match="dimension 'N' of size 0"):
            module(np.zeros((0, 20), np.float32))
        with pytest.raises(UsageError, match="input 'x': expected Nx20"):
            module(np.zeros((2, 20, 1), np.float32))
        with pytest.raises(UsageError, match="input 'x': expected shape 2x20"):
            module(np.zeros((2, 21), np.float32))
        with pytest.raises(UsageError, match="kernels for each"):
            module.per_layer()
    with Module(sequences[1]) as module:
        with pytest.raises(UsageError, match="compiled for up to 33"):
            module(np.zeros((1, 34, 32), np.float32), np.zeros((1, 1, 1, 34), np.float32))
        with pytest.raises(UsageError, match="'attention_bias' has 5 in dimension 'S', input 'hidden_states' has 4"):
            module(np.zeros((1, 4, 32), np.float32), np.zeros((1, 1, 1, 5), np.float32))


def test_verify_runs_buckets_and_sizes_between_them(batches: tuple[Path, Path]) -> None:
    model, library = batches
    report = sparsetvm.verify(library, model, samples=1)
    assert report.passed
    assert "dimension 'N' ran with 1, 2, 7, 8, 9" in report.notes
    assert "dimension 'N' ran with 5" in sparsetvm.verify(library, model, samples=1, shapes={"x": (5, 20)}).notes
    with pytest.raises(UsageError, match="only 'N' may be of any size"):
        sparsetvm.verify(library, model, samples=1, shapes={"x": (5, 21)})


def test_bench_runs_the_size_that_is_asked_for(batches: tuple[Path, Path]) -> None:
    model, library = batches
    report = sparsetvm.bench(library, against=("ort",), seconds=0.01, reference_model=model, shapes={"x": (3, 20)})
    assert report.latency_ms.median > 0
    assert report.against["ort"].median > 0


def test_chunks_of_a_large_batch_become_the_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_batch, "_CHUNK_BYTES", 1)
    model, library = compiled(conv_net(batch="N"), tmp_path, buckets=(2, 4))
    with Module(library) as module:
        assert module.dynamic is not None
        assert module.dynamic.buckets == (1,)
        assert len(pieces(module.dynamic, 3)) == 3
    check(model, library, {"x": np.random.default_rng(0).standard_normal((3, 3, 12, 12)).astype(np.float32)})


def test_images_that_fill_the_lanes_of_the_last_layers_are_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_batch, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(split_batch, "_BYTES_PER_CLOCK", 1000)  # worth it for these few channels
    monkeypatch.setattr(split_batch, "_LANES_BYTES", 16 * 6500)
    lanes = host_target(1).lanes
    model, library = compiled(bottleneck_net(batch="N", size=28, stem_stride=2), tmp_path, buckets=(4, 2 * lanes))
    with Module(library) as module:
        assert module.dynamic is not None
        assert module.dynamic.buckets == (1, lanes)
    rng = np.random.default_rng(0)
    for batch in (1, lanes, lanes + 1):
        check(model, library, {"x": rng.standard_normal((batch, 3, 28, 28)).astype(np.float32)})


def test_tasks_of_all_buckets_are_tuned_once_each(tmp_path: Path) -> None:
    model = mlp(batch="N").save(tmp_path / "m.onnx")
    report = sparsetvm.tune(model, threads=1, log_dir=tmp_path, dry_run=True, buckets=(1, 8))
    names = [task.name for task in report.tasks]
    assert len(names) == len(set(names)) == 6
    assert all(name.endswith(("@1", "@8")) for name in names)


def test_dimension_must_be_there_and_be_named(tmp_path: Path) -> None:
    fixed = mlp(batch=1).save(tmp_path / "fixed.onnx")
    with pytest.raises(UsageError, match="no input of the model has a symbolic dimension"):
        sparsetvm.compile(fixed, tmp_path / "m.so", log_dir=tmp_path, buckets=(1, 8))
    both = bert(batch="N", seq="S").save(tmp_path / "both.onnx")
    with pytest.raises(UsageError, match="several symbolic dimensions: N, S"):
        sparsetvm.compile(both, tmp_path / "m.so", log_dir=tmp_path, buckets=(1, 8))
    with pytest.raises(UsageError, match="no symbolic dimension 'T'"):
        sparsetvm.compile(both, tmp_path / "m.so", log_dir=tmp_path, buckets={"T": (1, 8)})
    with pytest.raises(ModelError, match="symbolic dimensions: S"):
        sparsetvm.compile(both, tmp_path / "m.so", log_dir=tmp_path, buckets={"N": (1, 8)})
