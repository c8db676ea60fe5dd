from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sparsetvm.analysis.patterns import summarize
from sparsetvm.analysis.prune import prune_model, prune_weight
from sparsetvm.errors import EnvironmentProblem, ModelError, UsageError

RNG = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def save(
    path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], x: list[int], ir_version: int = 8
) -> Path:
    """A model with the input x and the output y."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)]
    initializers = [numpy_helper.from_array(data, name) for name, data in constants.items()]
    if ir_version < 4:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["p", "q"])], initializers
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=ir_version)
    onnx.save(model, path)
    return path


def constants_of(path: Path) -> dict[str, np.ndarray]:
    model = onnx.load(path)
    onnx.checker.check_model(model)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def node_of(path: Path, name: str) -> onnx.NodeProto:
    return next(node for node in onnx.load(path).graph.node if node.name == name)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 0.99), st.sampled_from(["unstructured", "rows", "columns"]))
def test_prune_weight_keeps_the_largest(m: int, k: int, sparsity: float, pattern: str) -> None:
    before = weight(m, k)
    after = prune_weight(before, sparsity, pattern)
    kept = after != 0
    np.testing.assert_array_equal(after[kept], before[kept])
    assert kept.any()
    squares = before**2
    score = {"unstructured": squares, "rows": squares.mean(1), "columns": squares.mean(0)}[pattern]
    alive = {"unstructured": kept, "rows": kept.any(1), "columns": kept.any(0)}[pattern]
    assert np.count_nonzero(~alive) == min(round(sparsity * score.size), score.size - 1)
    if not alive.all():
        assert score[alive].min() >= score[~alive].max() * (1 - 1e-6)


@pytest.mark.parametrize(
    ("pattern", "sparsity", "kind"),
    [
        ("unstructured", 0.9, "unstructured"),
        ("block:4x1", 0.9, "block 4x1"),
        ("block:1x4", 0.5, "block 1x4"),
        ("block:16x16", 0.75, "block 16x16"),
        ("n:m:2:4", 0.5, "2:4"),
        ("n:m:1:4", None, "1:4"),
        ("rows", 0.3, "rows"),
        ("columns", 0.3, "columns"),
    ],
)
def test_prune_weight_makes_what_the_analysis_finds(pattern: str, sparsity: float | None, kind: str) -> None:
    assert summarize(prune_weight(weight(128, 256), sparsity, pattern)).describe() == kind


def test_prune_weight_handles_blocks_cut_off_at_the_edge() -> None:
    after = prune_weight(weight(10, 7), 0.5, "block:4x4")
    blocks = [np.count_nonzero(b) / b.size for row in np.split(after, [4, 8]) for b in np.split(row, [4], axis=1)]
    assert sorted(blocks) == [0, 0, 0, 1, 1, 1]


def test_prune_weight_handles_groups_cut_off_at_the_end() -> None:
    after = prune_weight(weight(16, 10), None, "n:m:2:4")
    assert (np.count_nonzero(after[:, :4], axis=1) == 2).all()
    assert (np.count_nonzero(after[:, 8:], axis=1) == 2).all()


@pytest.mark.parametrize(
    ("sparsity", "pattern", "message"),
    [
        (1.0, "unstructured", "must be at least 0"),
        (-0.1, "unstructured", "must be at least 0"),
        (float("nan"), "unstructured", "must be at least 0"),
        (None, "unstructured", "must be at least 0"),
        (0.5, "blocks", "is no pattern"),
        (0.5, "block:0x4", "is no pattern"),
        (0.5, "block:4", "is no pattern"),
        (0.5, "n:m:4:4", "is no pattern"),
        (0.5, "n:m:0:4", "is no pattern"),
        (0.9, "n:m:2:4", "has a sparsity of 0.5, not 0.9"),
        (0.5, "block:64x1", "does not fit"),
        (0.5, "n:m:16:32", "does not fit"),
    ],
)
def test_prune_weight_refuses(sparsity: float | None, pattern: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prune_weight(weight(16, 16), sparsity, pattern)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Two convolutions, a Gemm (k, m), a MatMul and a small MatMul."""
    nodes = [
        helper.make_node("Conv", ["x", "c1"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "c2"], ["b"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "dw"], ["c"], "depthwise", group=32, pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "g"], ["e"], "gemm"),
        helper.make_node("MatMul", ["e", "w"], ["f"], "matmul"),
        helper.make_node("MatMul", ["f", "s"], ["y"], "small"),
    ]
    constants = {
        "c1": weight(32, 4, 3, 3),
        "c2": weight(32, 32, 3, 3),
        "dw": weight(32, 1, 3, 3),
        "g": weight(512, 64),
        "w": weight(64, 48),
        "s": weight(48, 4),
    }
    return save(tmp_path / "in.onnx", nodes, constants, [1, 4, 4, 4])


def test_prune_model_leaves_first_depthwise_and_small_layers(network: Path, tmp_path: Path) -> None:
    report = prune_model(network, tmp_path / "out.onnx", 0.9)
    reasons = {layer["name"]: layer["reason"] for layer in report.layers}
    assert reasons == {
        "first": "first convolution",
        "second": "",
        "depthwise": "depthwise convolution",
        "gemm": "",
        "matmul": "",
        "small": "fewer than 1024 weights",
    }
    before, after = constants_of(network), constants_of(tmp_path / "out.onnx")
    for name in before:
        zeros = 1 - np.count_nonzero(after[name]) / after[name].size
        assert zeros == pytest.approx(0.9 if name in ("c2", "g", "w") else 0.0, abs=1e-3)
    assert report.sparsity == pytest.approx(0.9, abs=1e-3)
    assert [layer["shape"] for layer in report.layers[:5]] == ["32x36", "32x288", "32x9", "64x512", "48x64"]


def test_prune_model_works_on_the_output_by_reduction_view(network: Path, tmp_path: Path) -> None:
    prune_model(network, tmp_path / "out.onnx", 0.75, "block:4x1")
    after = constants_of(tmp_path / "out.onnx")
    assert summarize(after["w"].T.copy()).describe() == "block 4x1"
    assert summarize(after["g"].T.copy()).describe() == "block 4x1"
    assert summarize(after["c2"].reshape(32, -1)).describe() == "block 4x1"


def test_prune_model_prunes_exactly_the_named_layers(network: Path, tmp_path: Path) -> None:
    report = prune_model(network, tmp_path / "out.onnx", 0.5, layers=["first", "s*"])
    assert [layer["name"] for layer in report.layers if layer["pruned"]] == ["first", "second", "small"]


def test_prune_model_names_the_closest_layer_when_one_is_unknown(network: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'matmul'"):
        prune_model(network, tmp_path / "out.onnx", 0.5, layers=["matmull"])


def test_prune_model_leaves_layers_that_are_smaller_than_a_block(network: Path, tmp_path: Path) -> None:
    report = prune_model(network, tmp_path / "out.onnx", 0.5, "block:64x1", small=0)
    assert [layer["name"] for layer in report.layers if layer["pruned"]] == ["gemm"]
    assert report.layers[1]["reason"] == "smaller than block:64x1"


def test_weight_that_two_layers_share_is_pruned_once(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", [a, "w"], [b], b) for a, b in (("x", "h"), ("h", "y"))]
    path = save(tmp_path / "in.onnx", nodes, {"w": weight(64, 64)}, [1, 64])
    report = prune_model(path, tmp_path / "out.onnx", 0.9)
    assert [layer["pruned"] for layer in report.layers] == [True, True]
    assert constants_of(tmp_path / "out.onnx").keys() == {"w"}


def test_weight_that_another_node_reads_is_copied(tmp_path: Path) -> None:
    """A tied embedding: the rows that Gather looks up must not change."""
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], "cast", to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "i"], ["e"], "gather"),
        helper.make_node("Transpose", ["table"], ["t"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["e", "t"], ["y"], "logits"),
    ]
    table = weight(100, 32)
    path = save(tmp_path / "in.onnx", nodes, {"table": table}, [1, 8])
    prune_model(path, tmp_path / "out.onnx", 0.75, "block:4x1")
    after = constants_of(tmp_path / "out.onnx")
    np.testing.assert_array_equal(after["table"], table)
    copy = after[node_of(tmp_path / "out.onnx", "logits").input[1]]
    assert copy.shape == (32, 100)
    assert summarize(copy.T.copy()).describe() == "block 4x1"


def test_layers_that_see_a_weight_differently_get_their_own(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], "plain"),
        helper.make_node("Gemm", ["h", "w"], ["y"], "turned", transB=1),
    ]
    path = save(tmp_path / "in.onnx", nodes, {"w": weight(64, 64)}, [1, 64])
    prune_model(path, tmp_path / "out.onnx", 0.75, "block:4x1")
    after = constants_of(tmp_path / "out.onnx")
    plain, turned = (after[node_of(tmp_path / "out.onnx", name).input[1]] for name in ("plain", "turned"))
    assert summarize(plain.T.copy()).describe() == "block 4x1"
    assert summarize(turned).describe() == "block 4x1"


def test_copies_are_declared_in_files_of_old_versions(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node("Add", ["h", "w"], ["y"], "sum"),
    ]
    path = save(tmp_path / "in.onnx", nodes, {"w": weight(64, 64)}, [1, 64], ir_version=3)
    prune_model(path, tmp_path / "out.onnx", 0.5)
    assert constants_of(tmp_path / "out.onnx").keys() == {"w", "w.pruned"}


def test_weights_in_constant_nodes_and_behind_identity_are_pruned(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["w0"], "const", value=numpy_helper.from_array(weight(64, 64))),
        helper.make_node("Identity", ["w0"], ["w1"], "same"),
        helper.make_node("MatMul", ["x", "w1"], ["y"], "product"),
    ]
    path = save(tmp_path / "in.onnx", nodes, {}, [1, 64])
    report = prune_model(path, tmp_path / "out.onnx", 0.5)
    assert [layer["sparsity"] for layer in report.layers] == [0.5]
    value = node_of(tmp_path / "out.onnx", "const").attribute[0].t
    assert np.count_nonzero(numpy_helper.to_array(value)) == 2048


def test_computed_and_integer_weights_are_no_layers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], "turn"),
        helper.make_node("MatMul", ["x", "t"], ["y"], "product"),
    ]
    path = save(tmp_path / "in.onnx", nodes, {}, [8, 64])
    report = prune_model(path, tmp_path / "out.onnx", 0.5)
    assert (report.layers, report.sparsity) == ([], 0.0)


def test_prune_model_refuses_to_overwrite_its_input(network: Path) -> None:
    with pytest.raises(UsageError, match="overwrite"):
        prune_model(network, network, 0.5)


def test_prune_model_refuses_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError):
        prune_model(tmp_path / "in.onnx", tmp_path / "out.onnx", 0.5)


def test_prune_model_leaves_nothing_behind_when_it_cannot_write(network: Path, tmp_path: Path) -> None:
    (tmp_path / "out.onnx").mkdir()
    before = set(tmp_path.iterdir())
    for output in (tmp_path / "out.onnx", tmp_path / "none" / "out.onnx"):
        with pytest.raises(EnvironmentProblem, match="cannot write"):
            prune_model(network, output, 0.5)
    assert set(tmp_path.iterdir()) == before


def test_prune_model_report_is_plain_json(tmp_path):
    source = save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"], "layer")],
        {"w": weight(64, 64)},
        [4, 64],
    )
    report = prune_model(source, tmp_path / "p.onnx", 0.9)
    decoded = json.loads(report.to_json())
    assert decoded["sparsity"] == pytest.approx(0.9, abs=0.01)
