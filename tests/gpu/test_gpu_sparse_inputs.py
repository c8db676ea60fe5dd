"""Kernels that skip zero activations, k-winners and bfloat16, on the GPU itself."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from cuda_cases import product, sparse
from gpu_tools import needs_gpu
from k_winners_cases import inputs, network
from models import ModelBuilder, prune, random_inputs, relative_error, run_onnxruntime
from sparsetvm.schedules.base import template

import sparsetvm
from sparsetvm.core.config import Config
from sparsetvm.core.target import parse_target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Epilogue
from sparsetvm.measure.cuda_candidate import CudaTrial, build_cuda
from sparsetvm.measure.reference import make_references
from sparsetvm.measure.timing import time_repeats

pytestmark = needs_gpu
COLUMNS = template("cuda.spmv_columns")


def trial(task: Task, config: Config) -> CudaTrial:
    target = parse_target("cuda")
    references = make_references(task.workload, task.weight, task.bias)
    return CudaTrial(build_cuda(task, config, target, template), references, target, COLUMNS.tolerance)


@pytest.mark.parametrize("n", [1, 3])
def test_every_config_is_right_for_sparse_empty_and_full_inputs_before_and_after_it_is_timed(n):
    weight = sparse(np.random.default_rng(n), (700, 3000), 0.1)
    epilogue = Epilogue(bias=True, residual=True, activation="relu")
    workload = msgspec.structs.replace(product(n, 700, 3000, epilogue, weight, plain=True), activation_density=0.125)
    task = Task("layer", workload, weight, np.ones(700, np.float32))
    for config in COLUMNS.space(workload, parse_target("cuda")):
        made = trial(task, config)
        assert made.check().status == "ok", config
        assert 0 < min(time_repeats(made.timer(None), 3, 0.05)) < 100, config  # us, kernels overlap the one before
        assert made.check().status == "ok", config


def test_network_with_k_winners_computes_what_onnxruntime_computes(tmp_path):
    builder = network()
    model, library = builder.save(tmp_path / "net.onnx"), tmp_path / "net.so"
    sparsetvm.tune(model, output=library, target="cuda", trials=30, log_dir=tmp_path, reuse=False)
    with sparsetvm.load(library) as module:
        assert [kernel["op"] for kernel in module.manifest["kernels"]].count("k_winners") == 2
        for x in inputs().values():
            (wanted,) = run_onnxruntime(builder.model(), {"x": x}).values()
            for _ in range(2):  # the first run captures the graph, the second replays it
                (found,) = module.run({"x": x}).values()
                np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())


def test_products_of_blocks_in_bfloat16_have_the_range_of_float32(tmp_path):
    rng = np.random.default_rng(0)
    builder = ModelBuilder()
    x = builder.input("x", (128, 512))
    for _ in range(2):
        weight = 1e4 * prune(rng.standard_normal((512, 512)).astype(np.float32), 0.75, (32, 32))
        x = builder.op("MatMul", x, builder.const(np.ascontiguousarray(weight.T)))
    builder.output(x)
    model, library = builder.save(tmp_path / "net.onnx"), tmp_path / "net.so"
    sparsetvm.compile(model, library, target="cuda,bf16", log_dir=tmp_path, reuse=False)
    given = random_inputs(builder.model())
    (expected,) = run_onnxruntime(builder.model(), given).values()
    with sparsetvm.load(library) as module:
        assert {layer["arithmetic"] for layer in module.manifest["layers"]} == {"bfloat16"}
        (found,) = module.run(given).values()
        assert 1e-4 < relative_error(found, expected) < 1.2e-2
    assert sparsetvm.verify(library, model, per_layer=True).passed
