"""Networks on a GPU: the right outputs through every way of calling them, and measured candidates."""

from __future__ import annotations

import pytest
from gpu_tools import Compiled, compiled, needs_gpu
from models import bert, conv_net, mlp, mobile_net, random_inputs, relative_error, run_onnxruntime

import sparsetvm
from sparsetvm.core.target import parse_target
from sparsetvm.measure.pool import Measurer
from sparsetvm.rewrite.prepare import prepare
from sparsetvm.search.candidates import candidates_of

pytestmark = needs_gpu
NETWORKS = {
    "mlp of one sample": lambda: mlp((64, 128, 96, 10), batch=1),
    "mlp of nine samples": lambda: mlp((64, 128, 96, 10), batch=9),
    "residual network": lambda: conv_net(batch=2, size=20, width=32),
    "depthwise network": lambda: mobile_net(batch=2, size=21, width=32),
    "encoder": lambda: bert(batch=2, seq=12, hidden=64, layers=2),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Compiled:
    return compiled(conv_net(batch=2, size=20, width=32), tmp_path_factory.mktemp("gpu"))


@pytest.mark.parametrize("name", NETWORKS)
def test_network_computes_what_onnxruntime_computes(name, tmp_path):
    builder = NETWORKS[name]()
    with sparsetvm.load(compiled(builder, tmp_path).path) as module:
        for seed in range(3):  # the first run captures the graph, later ones replay it
            inputs = random_inputs(builder.model(), seed)
            found = module.run(inputs)
            for output, expected in run_onnxruntime(builder.model(), inputs).items():
                assert relative_error(found[output], expected) < 1e-5


@pytest.mark.parametrize("build", [lambda: bert(batch=2, seq=48, hidden=64, layers=2), conv_net], ids=["bert", "conv"])
def test_network_in_tf32_verifies_within_the_tolerance_of_its_manifest(build, tmp_path):
    path = tmp_path / "net.so"
    model = build().save(tmp_path / "net.onnx")
    report = sparsetvm.compile(model, path, target="cuda", log_dir=tmp_path, reuse=False, allow_tf32=True)
    assert "tf32" in {layer["arithmetic"] for layer in report.layers}
    verified = sparsetvm.verify(path, model)
    assert verified.passed
    assert verified.rel_l2_error > 1e-5


def test_tensors_on_the_gpu_stay_there(library):
    torch = pytest.importorskip("torch")
    path, inputs, expected = library.path, library.inputs, library.expected
    with sparsetvm.load(path) as module:
        given = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
        (found,) = module.run(given).values()
        result = torch.from_dlpack(found)
        assert result.is_cuda
        first = result.clone()
        module.run({name: tensor * 2 for name, tensor in given.items()})
        assert torch.equal(first, result)  # later runs leave results alone
        assert relative_error(result.cpu().numpy(), next(iter(expected.values()))) < 1e-5


def test_function_main_takes_any_tensors(library):
    import tvm
    from tvm.runtime.vm import VirtualMachine

    path, inputs, expected = library.path, library.inputs, library.expected
    machine = VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cuda(0))
    for _ in range(3):
        tensors = [tvm.runtime.tensor(array, tvm.cuda(0)) for array in inputs.values()]
        result = machine["main"](*tensors).numpy()
        assert relative_error(result, next(iter(expected.values()))) < 1e-5


def test_every_tf32_config_is_right_and_no_strict_one(tmp_path):
    target = parse_target("cuda", allow_tf32=True)
    builder = mlp((200, 300, 70), batch=150)
    tasks = [*prepare(builder.save(tmp_path / "m.onnx"), target).unique_tasks()]
    tasks += prepare(conv_net(batch=2, size=20, width=32).save(tmp_path / "c.onnx"), target).unique_tasks()
    with Measurer(target, jobs=8, repeats=3) as measurer:
        for task in tasks:
            choice = candidates_of(task.workload, target).choice("cuda.dense_tf32")
            for result in measurer.measure(task, list(choice.space)) if choice is not None else ():
                assert result.status == "ok", (result.config, result.message)
                assert 1e-5 < result.error < 1e-3, (result.config, result.error)


def test_defaults_of_all_templates_are_right_and_timed(tmp_path):
    target = parse_target("cuda")
    builder = mlp((256, 512, 128, 10), batch=64, sparsity=0.9)
    prepared = prepare(builder.save(tmp_path / "m.onnx"), target)
    with Measurer(target, jobs=2, repeats=3) as measurer:
        for task in prepared.unique_tasks():
            configs = [choice.default for choice in candidates_of(task.workload, target).choices]
            for result in measurer.measure(task, configs):
                assert result.status == "ok", (result.config, result.message)
                assert 0.5 < result.best_us < 1000
