"""Who may use TF32: targets that allow it, in tasks of their own; records cross in neither direction."""

from __future__ import annotations

from pathlib import Path

import click.testing
import msgspec
import numpy as np
import pytest
from cuda_remainder_cases import matmul
from models import ModelBuilder, mlp, random_inputs, run_onnxruntime
from search_cases import FakeIndex
from sparsetvm.schedules.base import arithmetic_of, template, template_names

from sparsetvm import api
from sparsetvm.analysis.roofline import expected_speedup
from sparsetvm.build.choose import choose, choose_dense
from sparsetvm.cli.main import cli
from sparsetvm.core.config import Config
from sparsetvm.core.manifest import Signature
from sparsetvm.core.record import Record
from sparsetvm.core.target import device_fingerprint, parse_target, toolchain_fingerprint
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Workload
from sparsetvm.errors import TargetError
from sparsetvm.log.lookup import Decision, RecordIndex
from sparsetvm.rewrite.prepare import prepare
from sparsetvm.runtime.verify import verify_module
from sparsetvm.search.budget import TuneOptions
from sparsetvm.search.candidates import candidates_of, validator
from sparsetvm.search.outcome import TaskOutcome
from sparsetvm.search.replay import ReplayMeasurer
from sparsetvm.search.run import report_of
from sparsetvm.search.trial import Measured
from sparsetvm.search.tuner import tune_tasks

STRICT = parse_target("cuda,sm_90")
TF32 = parse_target("cuda,sm_90", allow_tf32=True)
NAME = "cuda.dense_tf32"


def pruned(tf32: bool) -> Workload:
    base = matmul(512, 512, 128)
    pattern = msgspec.structs.replace(base.pattern, kind="unstructured", density=0.1, digest="p")
    return msgspec.structs.replace(base, pattern=pattern, tf32=tf32)


def test_target_says_that_tf32_is_allowed_and_reads_what_it_prints() -> None:
    assert not STRICT.tf32
    assert TF32.tf32
    assert str(TF32) == "cuda,sm_90,tf32"
    assert parse_target(str(TF32)) == TF32
    assert device_fingerprint(TF32) == device_fingerprint(STRICT)


@pytest.mark.parametrize("target", ["cpu", "cpu,znver4"])
def test_cpu_has_no_tf32(target: str) -> None:
    with pytest.raises(TargetError, match="no TF32") as error:
        parse_target(target, 1, allow_tf32=True)
    assert error.value.hint


@pytest.mark.parametrize("command", ["tune", "compile -o m.so", "inspect", "bench"])
def test_allow_tf32_for_a_cpu_is_a_usage_error(command: str, tmp_path: Path) -> None:
    model = mlp().save(tmp_path / "m.onnx")
    result = click.testing.CliRunner().invoke(cli, [*command.split(), str(model), "--allow-tf32"])
    assert result.exit_code == 2
    assert "--allow-tf32" in result.output


def test_products_of_few_tokens_have_the_same_task_with_and_without(tmp_path: Path) -> None:
    builder = ModelBuilder()
    for tokens in (8, 32):
        x = builder.input(f"x{tokens}", (tokens, 64))
        builder.output(builder.gemm(x, 64, 32, sparsity=0.9))
    tasks = prepare(builder.save(tmp_path / "m.onnx"), TF32).unique_tasks()
    assert {task.workload.n: task.workload.tf32 for task in tasks} == {8: False, 32: True}
    assert not any(task.workload.tf32 for task in prepare(tmp_path / "m.onnx", STRICT).unique_tasks())


def test_only_two_templates_compute_in_tf32_and_the_dense_one_is_a_candidate_where_allowed() -> None:
    assert [name for name in template_names() if arithmetic_of(name) == "tf32"] == ["cuda.block_tf32", NAME]
    assert template(NAME).tolerance > 10 * template("cuda.dense").tolerance
    assert candidates_of(pruned(False), STRICT).choice(NAME) is None
    allowed = candidates_of(pruned(True), TF32).choice(NAME)
    assert allowed is not None
    assert allowed.dense


def test_tensor_cores_make_sparse_kernels_less_worth_it() -> None:
    assert expected_speedup(pruned(True), TF32) < expected_speedup(pruned(False), STRICT)


def record(workload: Workload, config: Config, us: float) -> Record:
    found = candidates_of(workload, TF32).choice(config.template) or candidates_of(pruned(True), TF32).choice(NAME)
    assert found is not None
    version = found.version_of(config if config.template == found.name else found.default)
    return Record(
        workload=workload, config=config, status="ok", device=device_fingerprint(TF32),
        toolchain=toolchain_fingerprint(), template_version=version, space=found.space.fingerprint,
        times_us=(us,), stage="final", run="r", time="2026-01-02T03:04:05Z",
    )  # fmt: skip


def best(workload: Workload, *records: Record) -> Decision:
    index = RecordIndex()
    for known in records:
        index.add(known)
    return index.best(workload, device_fingerprint(TF32), validator(candidates_of(workload, TF32)))


def test_records_with_and_without_permission_only_seed_each_other() -> None:
    tf32, sparse = template(NAME).default(pruned(True), TF32), candidates_of(pruned(False), STRICT).default
    for ours, theirs in ((False, True), (True, False)):
        decision = best(pruned(ours), record(pruned(theirs), sparse, 5.0), record(pruned(True), tf32, 1.0))
        if ours:
            assert decision.record is not None
            assert decision.record.config == tf32
        else:
            assert (decision.kind, decision.record) == ("near", None)
    assert best(pruned(True), record(pruned(False), sparse, 5.0)).kind == "near"


def test_forged_record_of_a_strict_task_never_brings_tf32_in() -> None:
    config = template(NAME).default(pruned(True), TF32)
    assert best(pruned(False), record(pruned(False), config, 1.0)).record is None


@pytest.mark.parametrize(("tensor_us", "winner"), [(2.0, NAME), (50.0, "cuda.spmm")])
def test_tuning_takes_tensor_cores_for_a_pruned_layer_only_where_they_win(tensor_us: float, winner: str) -> None:
    def cost(_: Task, config: Config) -> Measured:
        times = {NAME: tensor_us, "cuda.dense": 30.0}
        time = times.get(config.template, 10.0)
        return Measured(config=config, status="ok", times_us=(time, time), error=1e-6)

    def tuned(workload: Workload) -> TaskOutcome:
        task = Task("fc", workload, np.zeros((1, 1), np.float32), None, ["fc"])
        (outcome,) = tune_tasks(
            [task], TF32 if workload.tf32 else STRICT, TuneOptions(effort="quick", run="r"), FakeIndex(),
            lambda _: None, ReplayMeasurer(cost), lambda _: None, 0,
        )  # fmt: skip
        return outcome

    allowed, strict = tuned(pruned(True)), tuned(pruned(False))
    assert allowed.config.template.startswith(winner)
    assert strict.config.template.startswith("cuda.spmm")
    assert allowed.dense_us == min(tensor_us, 30.0)
    reports = report_of(allowed, TF32), report_of(strict, STRICT)
    assert [report.arithmetic for report in reports] == [arithmetic_of(winner), "float32"]
    assert ("tensor cores win" in reports[0].reason) == (winner == NAME)
    assert reports[1].reason == ""


def test_dense_build_uses_tensor_cores_where_they_are_allowed(tmp_path: Path) -> None:
    path = mlp(batch=64).save(tmp_path / "m.onnx")
    found = {}
    for target in (STRICT, TF32):
        tasks = prepare(path, target).tasks
        found[target.tf32] = {choice.arithmetic for choice in choose_dense(tasks, target).values()}
        chosen = choose(tasks, target, RecordIndex(), device_fingerprint(target)).values()
        assert target.tf32 or {choice.arithmetic for choice in chosen} == {"float32"}
    assert found == {False: {"float32"}, True: {"tf32"}}


class RoundedModule:
    """A compiled model whose outputs are off by 1e-4; the manifest says how far they may be."""

    threads = 1
    dynamic = None

    def __init__(self, builder: ModelBuilder, manifest: dict[str, object]) -> None:
        fields = {"schema": 1, "library_sha256": "", "inputs": [], "outputs": [], **manifest}
        self.model, self.signature = builder.model(), msgspec.convert(fields, Signature)
        self.inputs = self.outputs = ()

    def random_inputs(self, seed: int, *, size: int | None = None) -> dict[str, np.ndarray]:
        assert size is None
        return random_inputs(self.model, seed)

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: value * np.float32(1 + 1e-4) for name, value in run_onnxruntime(self.model, inputs).items()}


def test_verify_takes_the_tolerance_of_the_manifest_unless_one_is_given(tmp_path: Path) -> None:
    builder = mlp()
    path = builder.save(tmp_path / "m.onnx")

    def passed(manifest: dict[str, object], tolerance: float | None = None) -> bool:
        module = RoundedModule(builder, manifest)
        return verify_module(module, path, samples=1, tolerance=tolerance, seed=0).passed  # type: ignore[arg-type]

    assert passed({"tolerances": {"rel_l2_error": 1e-3}})
    assert not passed({"tolerances": {"rel_l2_error": 1e-5}})
    assert not passed({})
    assert not passed({"tolerances": {"rel_l2_error": 1e-3}}, 1e-5)


def test_python_functions_take_the_permission(tmp_path: Path) -> None:
    path = mlp(batch=64).save(tmp_path / "m.onnx")
    assert any(task.workload.tf32 for task in api.tasks(path, target="cuda,sm_90", allow_tf32=True))
    assert api.inspect(path, target="cuda,sm_90", allow_tf32=True).target == "cuda,sm_90,tf32"
