"""Float16 networks on a GPU: their own types in and out, from numpy and from tensors that are there."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from float16 import half_inputs, rounded, to_float16
from models import ModelBuilder, bert, conv_net, prune, random_inputs, relative_error, run_onnxruntime

import sparsetvm
from sparsetvm.core.target import parse_target
from sparsetvm.errors import SparseTvmError


def has_gpu() -> bool:
    try:
        parse_target("cuda")
    except SparseTvmError:
        return False
    return True


pytestmark = pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")


@pytest.mark.parametrize("build", [lambda: conv_net(batch=2, size=20, width=32), lambda: bert(batch=2, seq=12)])
def test_float16_network_takes_and_returns_float16(build, tmp_path):
    builder = rounded(build())
    model = to_float16(builder.model())
    source, library = tmp_path / "net.onnx", tmp_path / "net.so"
    onnx.save(model, source)
    sparsetvm.compile(source, library, target="cuda", log_dir=tmp_path, reuse=False)
    inputs = half_inputs(model)
    (expected,) = run_onnxruntime(builder.model(), {at: x.astype(np.float32) for at, x in inputs.items()}).values()
    with sparsetvm.load(library) as module:
        for _ in range(2):  # the first run captures the graph, the second replays it
            (found,) = module.run(inputs).values()
            assert found.dtype == np.float16
            assert relative_error(found, expected) < 5e-3  # products round to float16, layer after layer
        torch = pytest.importorskip("torch")
        (stayed,) = module.run({at: torch.from_numpy(array).cuda() for at, array in inputs.items()}).values()
        assert torch.equal(torch.from_dlpack(stayed).cpu(), torch.from_numpy(found))


def test_products_of_blocks_and_two_four_hand_each_other_float16(tmp_path):
    rng = np.random.default_rng(0)
    builder = ModelBuilder()
    x = builder.input("x", (128, 512))
    for at in range(3):
        weight = prune(rng.standard_normal((512, 512)).astype(np.float32) / 16, 0.75, (32, 32))
        if at == 1:
            weight = rng.standard_normal((512, 512)).astype(np.float32) / 16
            weight[rng.random((512, 128, 4)).argsort(axis=2).reshape(512, 512) >= 2] = 0
        x = builder.relu(builder.op("MatMul", x, builder.const(np.ascontiguousarray(weight.T))))
    builder.output(x)
    model, library = builder.save(tmp_path / "net.onnx"), tmp_path / "net.so"
    options = {"target": "cuda", "allow_fp16": True, "log_dir": tmp_path, "reuse": False}
    sparsetvm.tune(model, output=library, trials=12, **options)
    inputs = random_inputs(builder.model())
    (expected,) = run_onnxruntime(builder.model(), inputs).values()
    with sparsetvm.load(library) as module:
        assert {layer["arithmetic"] for layer in module.manifest["layers"]} == {"float16"}
        for _ in range(2):
            (found,) = module.run(inputs).values()
            assert 1e-5 < relative_error(found, expected) < 2e-3
    assert sparsetvm.verify(library, model, per_layer=True).passed
