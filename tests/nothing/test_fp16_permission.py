"""Products are multiplied in float16 where the model is float16 or it was allowed, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from cuda_half_cases import named
from cuda_remainder_cases import matmul
from emulator.network import run_network
from float16 import rounded, to_float16
from models import conv_net, mlp, random_inputs, relative_error, run_onnxruntime
from sparsetvm.schedules.base import arithmetic_of, matching

from sparsetvm import api
from sparsetvm.core.arithmetic import network_tolerance
from sparsetvm.core.layout import HalfTiled, Tiled
from sparsetvm.core.target import parse_target
from sparsetvm.core.workload import Workload
from sparsetvm.errors import TargetError
from sparsetvm.rewrite.prepare import prepare
from sparsetvm.search.candidates import candidates_of

STRICT = parse_target("cuda,sm_90")
FP16 = parse_target("cuda,sm_90", allow_fp16=True)


def pruned(fp16: bool, n: int = 256) -> Workload:
    base = matmul(2048, 2048, n)
    return msgspec.structs.replace(base, pattern=named("block", (32, 32), 0.05), fp16=fp16)


def test_target_says_what_is_allowed_and_reads_what_it_prints() -> None:
    assert not STRICT.fp16
    assert str(FP16) == "cuda,sm_90,fp16"
    both = parse_target("cuda,sm_90", allow_tf32=True, allow_fp16=True)
    for target in (FP16, both):
        assert parse_target(str(target)) == target
    with pytest.raises(TargetError, match="--allow-fp16"):
        parse_target("cpu,znver4", allow_fp16=True)


def test_products_and_pointwise_convolutions_may_round_when_it_is_allowed(tmp_path: Path) -> None:
    path = conv_net(size=9).save(tmp_path / "m.onnx")
    for target, allowed in ((STRICT, False), (FP16, True)):
        for task in prepare(path, target).unique_tasks():
            conv = task.workload.conv
            assert task.workload.fp16 is (allowed and conv is not None and conv.pointwise), task.name
    assert any(task.workload.fp16 for task in api.tasks(path, target="cuda,sm_90", allow_fp16=True))


def test_layers_of_float16_models_may_round_on_gpus_alone(tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    onnx.save(to_float16(rounded(mlp(batch=16)).model()), path)
    for name, allowed in (("cuda,sm_90", True), ("cpu,znver4", False)):
        prepared = prepare(path, parse_target(name, threads=1))
        assert {task.workload.fp16 for task in prepared.unique_tasks()} == {allowed}
        assert any("may round to it" in note for note in prepared.notes) is allowed


def test_blocks_take_tensor_cores_only_when_that_is_allowed() -> None:
    assert candidates_of(pruned(True), FP16).default.template == "cuda.block_mma"
    strict = {template.name: template.arithmetic for template in matching(pruned(False), FP16)}
    assert set(strict.values()) == {"float32"}
    assert pruned(True).family != pruned(False).family


def test_dense_products_take_wgmma_but_for_few_tokens() -> None:
    for n, expected in ((16, "cuda.dense_fp16"), (128, "cuda.dense_wgmma"), (1024, "cuda.dense_wgmma")):
        lin, lout = HalfTiled(n, 2048, n), HalfTiled(n, 2048, n)
        workload = msgspec.structs.replace(matmul(2048, 2048, n), layout_in=lin, layout_out=lout, fp16=True)
        assert candidates_of(workload, FP16).default.template == expected


def test_sparse_tensor_cores_take_few_tokens_too() -> None:
    for n in (16, 128, 1024):
        lin, lout = HalfTiled(n, 4096, n), HalfTiled(n, 4096, n)
        workload = msgspec.structs.replace(
            matmul(4096, 4096, n), layout_in=lin, layout_out=lout, fp16=True, pattern=named("n:m", (2, 4), 0.5)
        )
        assert candidates_of(workload, FP16).default.template == "cuda.two_four"


def test_float32_kernels_never_see_float16_in_memory() -> None:
    workload = pruned(True)
    lin, lout = (HalfTiled(256, 2048, 256), Tiled(256, 2048, 256))
    for pair in ((lin, lout), (lout, lin), (lin, lin)):
        half = msgspec.structs.replace(workload, layout_in=pair[0], layout_out=pair[1])
        assert {template.arithmetic for template in matching(half, FP16)} == {"float16"}


def test_half_layout_stores_float16_and_reads_back() -> None:
    layout = HalfTiled(9, 3, 16)
    values = np.arange(27, dtype=np.float16).reshape(9, 3)
    np.testing.assert_array_equal(layout.to_logical(layout.to_physical(values), (9, 3)), values)
    assert layout.half
    assert not Tiled(9, 3, 16).half
    decoded = msgspec.json.decode(msgspec.json.encode(pruned(True)), type=Workload)
    assert decoded == pruned(True)


def test_network_in_float16_is_off_by_no_more_than_its_manifest_says(tmp_path: Path) -> None:
    builder = mlp(batch=9)
    prepared = prepare(builder.save(tmp_path / "m.onnx"), FP16)
    configs = {
        layer: next(c for c in candidates_of(task.workload, FP16).choices if c.name == "cuda.dense_fp16").default
        for layer, task in prepared.tasks.items()
    }
    inputs = random_inputs(builder.model())
    found, _ = run_network(prepared.graph, prepared.tasks, configs, FP16, inputs)
    used = [arithmetic_of(config.template) for config in configs.values()]
    for value, wanted in zip(found, run_onnxruntime(builder.model(), inputs).values(), strict=True):
        assert 1e-5 < relative_error(value, wanted) < network_tolerance(used)
