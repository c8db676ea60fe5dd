"""`inspect --what-if`: what a pattern would gain and remove, from records where there are some, else the roofline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from log_samples import record
from models import ModelBuilder
from onnx import numpy_helper

from sparsetvm import api
from sparsetvm.analysis.prune import prune_model
from sparsetvm.analysis.rest_time import rest_time
from sparsetvm.analysis.roofline import best_time, dense_time
from sparsetvm.cli.main import cli
from sparsetvm.core.record import Record
from sparsetvm.core.results import InspectReport, PatternForecast
from sparsetvm.core.target import device_fingerprint, parse_target, toolchain_fingerprint
from sparsetvm.core.task import Task
from sparsetvm.errors import UsageError
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.rewrite.prepare import Prepared, prepare
from sparsetvm.search.candidates import candidates_of
from sparsetvm.search.what_if import Forecaster, parse_goals

TARGET = parse_target("cpu,znver5", 1)
DEVICE = device_fingerprint(TARGET)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hidden layers of 128, a classifier of 10 that is too small to prune."""
    b = ModelBuilder("mlp")
    x = b.relu(b.gemm(b.input("x", (32, 96)), 96, 128))
    x = b.relu(b.gemm(x, 128, 128))
    return b.output(b.gemm(x, 128, 4)).save(tmp_path_factory.mktemp("what_if") / "mlp.onnx")


def forecast(model: Path, goal: str, records: Sequence[Record] = ()) -> PatternForecast:
    index = RecordIndex()
    for known in records:
        index.add(known)
    prepared = prepare(model, TARGET)
    (wanted,) = parse_goals([goal], 0.9)
    return Forecaster(prepared, TARGET, None, index, DEVICE).forecast(wanted)


def pruned(model: Path, folder: Path, goal: str) -> Prepared:
    prune_model(model, folder / "pruned.onnx", 0.9, goal)
    return prepare(folder / "pruned.onnx", TARGET)


@pytest.mark.parametrize("goal", ["unstructured", "block:4x1@0.75", "n:m:2:4", "rows@0.5", "channels@0.3"])
def test_forecast_is_the_roofline_of_the_pruned_model(model: Path, tmp_path: Path, goal: str) -> None:
    found = forecast(model, goal)
    before = prepare(model, TARGET)
    after = pruned(model, tmp_path, goal if not goal.startswith("n:m") else f"{goal}@0.5")
    dense = {name: dense_time(task.workload, TARGET) for name, task in before.tasks.items()}
    best = {name: best_time(task.workload, TARGET) for name, task in after.tasks.items()}
    assert [layer.name for layer in found.layers] == list(before.tasks)
    for layer in found.layers:
        assert layer.speedup == pytest.approx(dense[layer.name] / best[layer.name])
        assert layer.share == pytest.approx(dense[layer.name] / sum(dense.values()))
        assert (layer.source, layer.shape) == ("roofline", before.tasks[layer.name].workload.describe())
    assert found.layers_speedup == pytest.approx(sum(dense.values()) / sum(best.values()))
    rest = rest_time(before.graph, TARGET), rest_time(after.graph, TARGET)
    assert found.speedup == pytest.approx((sum(dense.values()) + rest[0]) / (sum(best.values()) + rest[1]))
    assert found.from_records == 0


def test_forecast_says_what_is_pruned_and_what_it_costs(model: Path) -> None:
    found = forecast(model, "block:4x1")
    assert found.pattern == "block:4x1@0.9"
    assert [layer.pruned for layer in found.layers] == [True, True, False]
    assert [layer.pattern for layer in found.layers][:2] == ["block 4x1", "block 4x1"]
    assert found.layers[2].reason == "fewer than 1024 weights"
    assert found.sparsity == pytest.approx(0.9, abs=0.01)
    assert 0.5 < found.l2_removed_unstructured < found.l2_removed < 1
    assert found.layers[2].l1_removed == 0
    assert found.kernels == 3


def records_of(task: Task, dense_us: float, sparse_us: float) -> list[Record]:
    """One of a dense and one of a sparse config, from a final round on this device."""
    return [
        record(
            dense_us if choice.dense else sparse_us,
            workload=task.workload,
            config=choice.default,
            template_version=choice.version_of(choice.default),
            space=choice.space.fingerprint,
            device=DEVICE,
            toolchain=toolchain_fingerprint(),
            stage="final",
        )
        for choice in candidates_of(task.workload, TARGET).choices
    ]


def test_records_of_the_pruned_layer_go_before_the_roofline(model: Path, tmp_path: Path) -> None:
    task = list(pruned(model, tmp_path, "block:4x1").tasks.values())[1]
    found = forecast(model, "block:4x1", records_of(task, 100.0, 12.5))
    assert [layer.source for layer in found.layers] == ["roofline", "records", "roofline"]
    assert found.layers[1].speedup == 8.0
    assert found.from_records == pytest.approx(found.layers[1].share)


def test_records_of_another_density_are_not_used(model: Path, tmp_path: Path) -> None:
    task = list(pruned(model, tmp_path, "block:4x1@0.95").tasks.values())[1]
    found = forecast(model, "block:4x1@0.75", records_of(task, 100.0, 12.5))
    assert {layer.source for layer in found.layers} == {"roofline"}


def test_model_that_is_pruned_already_loses_nothing(model: Path, tmp_path: Path) -> None:
    before = tmp_path / "before.onnx"
    prune_model(model, before, 0.9)
    found = forecast(before, "unstructured@0.9")
    assert found.l1_removed == found.l2_removed == 0.0
    assert found.layers_speedup > 2  # over dense kernels


def test_model_without_layers_gains_nothing(tmp_path: Path) -> None:
    b = ModelBuilder()
    path = b.output(b.relu(b.input("x", (4, 4)))).save(tmp_path / "m.onnx")
    found = forecast(path, "unstructured@0.9")
    assert (found.layers, found.layers_speedup, found.speedup) == ([], 1.0, 1.0)


def test_rest_counts_what_is_no_layer(tmp_path: Path) -> None:
    b = ModelBuilder()
    y = b.conv(b.input("x", (1, 32, 8, 8)), 32, 32, groups=32)
    with_depthwise = prepare(b.output(b.conv(y, 32, 32, 1)).save(tmp_path / "a.onnx"), TARGET)
    b = ModelBuilder()
    alone = prepare(b.output(b.conv(b.input("x", (1, 32, 8, 8)), 32, 32, 1)).save(tmp_path / "b.onnx"), TARGET)
    assert rest_time(with_depthwise.graph, TARGET) > rest_time(alone.graph, TARGET) >= 0
    gpu = parse_target("cuda,sm_90")
    assert rest_time(prepare(tmp_path / "a.onnx", gpu).graph, gpu) > 2.0


def test_command_prints_patterns_side_by_side_and_json(model: Path) -> None:
    goals = "unstructured@0.9,block:4x1@0.9,n:m:2:4,rows@0.5"
    line = ["inspect", str(model), "--target", "cpu,znver5", "--threads", "1", "--what-if", goals]
    shown = CliRunner().invoke(cli, line)
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.stdout.splitlines())) <= 100
    for text in ("n:m:2:4@0.5", "unstructured@0.9", "speed-up over dense", "not trained again", "L2 norm removed"):
        assert text in shown.stdout
    report = json.loads(CliRunner().invoke(cli, [*line, "--json", "-"]).stdout)
    assert [entry["pattern"] for entry in report["what_if"]] == [
        "unstructured@0.9", "block:4x1@0.9", "n:m:2:4@0.5", "rows@0.5",
    ]  # fmt: skip
    assert len(report["what_if"][0]["layers"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--what-if", "blocks"], "is no pattern"),
        (["--what-if", "block:4x1"], "must be at least 0"),
        (["--sparsity", "0.9"], "is for the patterns of --what-if"),
        (["--what-if", "n:m:2:4@0.9"], "has a sparsity of 0.5"),
    ],
)
def test_command_refuses(model: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, ["inspect", str(model), *options])
    assert result.exit_code == 2
    assert message in result.output


def test_sparsity_is_for_patterns_that_say_none() -> None:
    goals = parse_goals(["rows", "block:4x1@0.5", "n:m:1:4"], 0.8)
    assert [(str(pattern), sparsity) for pattern, sparsity in goals] == [
        ("rows", 0.8), ("block:4x1", 0.5), ("n:m:1:4", 0.75),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="must be at least 0"):
        parse_goals(["rows"], None)


def inspect_shared(path: Path) -> InspectReport:
    """Four layers, the last three with non-zeros in the same places, the last one without ReLU."""
    b = ModelBuilder("shared")
    x = b.input("x", (32, 64))
    for _ in range(3):
        x = b.relu(b.gemm(x, 64, 64))
    proto = b.output(b.gemm(x, 64, 64)).model()
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    rng = np.random.default_rng(0)
    mask = rng.random((64, 64)) < 0.1
    for node in [node for node in proto.graph.node if node.op_type == "Gemm"][1:]:
        values = np.where(mask, rng.standard_normal((64, 64)), 0).astype(np.float32)
        tensors[node.input[1]].CopyFrom(numpy_helper.from_array(values, node.input[1]))
    onnx.save(proto, path)
    return api.inspect(path, target="cpu,znver5", threads=1)


def test_inspect_names_layers_with_non_zeros_in_the_same_places(tmp_path: Path) -> None:
    first, second, third, last = inspect_shared(tmp_path / "shared.onnx").layers
    assert (first.same_positions, second.same_positions) == ("", "")
    assert (third.same_positions, third.shares_kernel) == (second.name, True)
    assert (last.same_positions, last.shares_kernel) == (second.name, False)
    shown = CliRunner().invoke(cli, ["inspect", str(tmp_path / "shared.onnx"), "--target", "cpu,znver5"]).stdout
    assert f"{third.name}: non-zeros in the same places as {second.name}, one kernel" in " ".join(shown.split())
    assert f"{last.name}: non-zeros in the same places as {second.name}, but not" in " ".join(shown.split())
