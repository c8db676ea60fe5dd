"""Benchmarks of sparse activations: on this CPU, and what of them a GPU needs no GPU for."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path
from typing import Any

import bench_sparse_sparse
import bench_speech_commands
import numpy as np
import pytest
from benchlib.mkl_sparse import mkl_product
from benchlib.sparse_inputs import CpuLayers, GpuLayers, fastest_of_each, kind_of
from sparsetvm.schedules.base import template, template_names

from sparsetvm.core.config import Config
from sparsetvm.core.target import cpu_flags, parse_target
from sparsetvm.measure import cuda_candidate


def test_templates_are_told_apart_by_the_zeros_that_they_use() -> None:
    kinds = {name: kind_of(name) for name in template_names()}
    assert [name for name, kind in kinds.items() if kind == "sparse-sparse"] == [
        "x86.spmv_columns",
        "cuda.spmv_columns",
    ]
    assert kinds["cuda.spmv"] == kinds["x86.spmv_lookup"] == "sparse-dense"
    assert kinds["cuda.dense_gemv"] == "dense"


def test_the_faster_orientation_of_a_competitor_counts() -> None:
    us = {"ours dense": 3.0, "torch-fp32 0": 2.0, "torch-fp32 1": 1.0, "cusparse 2": 4.0, "mkl-sparse": 5.0}
    assert fastest_of_each(us) == {"ours dense": 3.0, "torch-fp32": 1.0, "cusparse": 4.0, "mkl-sparse": 5.0}


def test_gpu_tries_a_few_configs_of_every_template_of_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_candidate, "open_device", lambda number: None)
    target = parse_target("cuda,sm_90", 1)
    layers = GpuLayers(target, ())
    task = bench_sparse_sparse.make_task(64, 1, (1, 1), target, 0.12)
    for name in ("cuda.spmv", "cuda.spmv_columns", "cuda.dense_gemv"):
        configs = layers.configs(task, name)
        assert 1 < len(configs) < 20
        assert {config.template for config in configs} == {name}
    assert layers.others(task, bench_sparse_sparse.draw_input(task, 0.12), None) == {}  # type: ignore[arg-type]


def test_gpu_leaves_out_what_takes_the_compiler_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_candidate, "open_device", lambda number: None)
    layers = GpuLayers(target := parse_target("cuda,sm_90", 1), ())
    tried: list[Config] = []
    monkeypatch.setattr(layers, "_fastest", lambda task, configs, reference: (tried.extend(configs), configs))
    task = bench_sparse_sparse.make_task(1024, 128, (1, 1), target, 1.0)
    assert not template("cuda.spmm_code").quick(task.workload)
    layers.ours(task, None)  # type: ignore[arg-type]
    names = {config.template for config in tried}
    assert {"cuda.spmm_data", "cuda.dense"} <= names
    assert "cuda.spmm_code" not in names


@pytest.mark.parametrize("module", [bench_sparse_sparse, bench_speech_commands])
def test_target_that_cannot_be_measured_is_an_error(module, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--target", "cuda,sm_90"])
    assert module.main() == 2
    assert "cannot be measured" in capsys.readouterr().err


def test_times_on_a_gpu_are_beside_pytorchs_dense_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def time_torch(library: Path, model: Path, inputs: Path, precisions: str) -> dict:
        seen.append((library.name, model.name, precisions, np.load(inputs)["x"].shape))
        return {"gpu": {"ours": 0.01 * len(seen), "torch-fp32": 0.1 * len(seen)}}

    monkeypatch.setattr(bench_speech_commands, "time_torch", time_torch)
    libraries = {name: Path(f"{name}.so") for name in ("dense", "sparse-dense")}
    paths = {name: Path(f"{name}.onnx") for name in ("dense", "sparse-dense")}
    times = bench_speech_commands.time_gpu(libraries, paths, tmp_path, torch=True)
    assert times.latency["ours sparse-dense"] == pytest.approx((20.0, 20.0))
    assert times.latency["torch-fp32 dense"] == pytest.approx((100.0, 100.0))
    assert [(name, model) for name, model, _, _ in seen] == [
        ("dense.so", "dense.onnx"),
        ("sparse-dense.so", "dense.onnx"),
    ]
    assert seen[0][2:] == ("fp32,tf32,fp16", (1, 1, 32, 32))


@pytest.mark.skipif("avx512f" not in cpu_flags(), reason="needs AVX-512")
def test_cpu_times_every_kind_of_kernel_beside_dense_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.json"
    options = ["--sizes", "64", "--columns", "1", "--patterns", "unstructured", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench", *options])
    only = lambda self, task, name: [template(name).default(task.workload, self.target)]  # noqa: E731
    monkeypatch.setattr(CpuLayers, "configs", only)
    assert bench_sparse_sparse.main() == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert {"ours dense", "ours sparse-dense", "ours sparse-sparse", "numpy", "onnxruntime"} <= row["us"].keys()
    assert row["over_dense"] > 0 < row["over_sparse_dense"]


class FakeMkl:
    """Each function returns 0, for success; the product writes into Y, as MKL does."""

    def __getattr__(self, name: str) -> Any:
        return self.mv if name == "mkl_sparse_s_mv" else lambda *_: 0

    def mv(self, *arguments: Any) -> int:
        ctypes.memset(arguments[-1], 0, 4 * 4096)
        return 0


def test_mkl_never_writes_into_an_array_that_is_gone() -> None:
    run, y = mkl_product(FakeMkl(), np.eye(4096, dtype=np.float32), np.ones(4096, np.float32))  # type: ignore[arg-type]
    before = sys.getrefcount(y)
    del run
    gc.collect()
    assert sys.getrefcount(y) < before


def test_onnxruntime_times_every_node_of_a_network(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = bench_speech_commands.write_networks(tmp_path, 0.95)["dense"]
    feed = {"x": np.ones((1, 1, 32, 32), np.float32)}
    layers = bench_speech_commands.profiled(path, feed, tmp_path, runs=20)
    assert len(layers) >= 4
    assert sum(layer.share for layer in layers) == pytest.approx(1)
    assert all(layer.us > 0 for layer in layers)
