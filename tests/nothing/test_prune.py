from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sparsetvm.analysis.magnitude import cost_of, parse_goal, parse_pattern
from sparsetvm.analysis.patterns import summarize
from sparsetvm.analysis.prune import prune_model, prune_weight
from sparsetvm.analysis.structure import find_structure
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


@pytest.mark.parametrize("pattern", ["n:m:2:4:output", "n:m:1:4:output"])
def test_prune_weight_makes_n_of_m_along_the_output_axis(pattern: str) -> None:
    found = find_structure(prune_weight(weight(128, 256), None, pattern))
    assert (found.kind, found.axis) == ("n:m", "output")
    assert f"n:m:{found.n_m[0]}:{found.n_m[1]}:output" == pattern


@pytest.mark.parametrize(("r", "c"), [(3, 1), (1, 5), (6, 12), (16, 1), (1, 32)])
def test_prune_weight_makes_blocks_of_any_size_that_detection_names(r: int, c: int) -> None:
    found = find_structure(prune_weight(weight(120, 240), 0.8, f"block:{r}x{c}"))
    assert (found.kind, found.block) == ("block", (r, c))


def test_channels_are_all_taps_of_an_input_channel() -> None:
    after = prune_weight(weight(8, 6 * 9), 0.5, "channels", taps=9)
    per_channel = np.count_nonzero(after.reshape(8, 6, 9), axis=(0, 2))
    assert sorted(per_channel) == [0, 0, 0, 72, 72, 72]


def test_filters_are_rows() -> None:
    before = weight(12, 8)
    np.testing.assert_array_equal(prune_weight(before, 0.5, "filters"), prune_weight(before, 0.5, "rows"))


@pytest.mark.parametrize(
    ("text", "sparsity", "expected"),
    [
        ("block:4x1@0.9", None, ("block:4x1", 0.9)),
        ("block:4x1@0.9", 0.5, ("block:4x1", 0.9)),
        ("channels", 0.5, ("channels", 0.5)),
        ("n:m:2:8:output", None, ("n:m:2:8:output", 0.75)),
        ("n:m:2:8:input@0.75", None, ("n:m:2:8", 0.75)),
    ],
)
def test_goal_is_pattern_and_sparsity(text: str, sparsity: float | None, expected: tuple[str, float]) -> None:
    pattern, target = parse_goal(text, sparsity)
    assert (str(pattern), target) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows", "must be at least 0"),
        ("rows@1", "must be at least 0"),
        ("rows@nan", "must be at least 0"),
        ("rows@", "is no sparsity"),
        ("@0.9", "is no pattern"),
        ("n:m:2:4@0.9", "has a sparsity of 0.5"),
        ("n:m:2:4:sideways", "is no pattern"),
    ],
)
def test_goal_refuses(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_goal(text)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(4, 40),
    st.integers(4, 40),
    st.sampled_from(["unstructured@0.7", "block:4x1@0.5", "rows@0.3", "n:m:2:4", "n:m:1:4:output"]),
)
def test_cost_of_a_pattern_is_at_least_that_of_unstructured_pruning(m: int, k: int, goal: str) -> None:
    before = weight(m, k)
    pattern, sparsity = parse_goal(goal)
    after = prune_weight(before, sparsity, pattern)
    shares = cost_of(before, after).shares()
    assert shares["l1_removed"] == pytest.approx(np.abs(before - after).sum() / np.abs(before).sum(), rel=1e-4)
    assert shares["l2_removed"] == pytest.approx(np.linalg.norm(before - after) / np.linalg.norm(before), rel=1e-4)
    for norm in ("l1", "l2"):
        least = shares[f"{norm}_removed_unstructured"]
        assert 0 <= least <= shares[f"{norm}_removed"] * (1 + 1e-9) <= 1 + 1e-6
        if pattern.kind == "unstructured":
            assert least == pytest.approx(shares[f"{norm}_removed"], rel=1e-6)


def test_zeros_that_were_there_cost_nothing() -> None:
    before = prune_weight(weight(16, 16), 0.9)
    assert set(cost_of(before, prune_weight(before, 0.5)).shares().values()) == {0.0}
    assert set(cost_of(np.zeros((4, 4)), np.zeros((4, 4))).shares().values()) == {0.0}


def test_prune_model_prunes_whole_channels_of_convolutions(network: Path, tmp_path: Path) -> None:
    prune_model(network, tmp_path / "out.onnx", 0.5, "channels")
    after = constants_of(tmp_path / "out.onnx")["c2"]
    assert sorted(np.count_nonzero(after, axis=(0, 2, 3)))[:17] == [0] * 16 + [288]


def test_layers_that_share_positions_are_one_pattern(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", [a, w], [b], b) for a, w, b in (("x", "u", "h"), ("h", "v", "y"))]
    path = save(tmp_path / "in.onnx", nodes, {"u": weight(64, 64), "v": 100 * weight(64, 64)}, [1, 64])
    before = constants_of(path)
    prune_model(path, tmp_path / "apart.onnx", 0.9, "block:4x1")
    report = prune_model(path, tmp_path / "out.onnx", 0.9, "block:4x1", share=True)
    apart, after = constants_of(tmp_path / "apart.onnx"), constants_of(tmp_path / "out.onnx")
    assert ((apart["u"] != 0) != (apart["v"] != 0)).any()
    np.testing.assert_array_equal(after["u"] != 0, after["v"] != 0)
    np.testing.assert_array_equal(after["v"][after["v"] != 0], before["v"][after["v"] != 0])
    assert summarize(after["u"].T.copy()).describe() == "block 4x1"
    assert all(row["l2_removed"] > row["l2_removed_unstructured"] > 0 for row in report.layers)


def test_prune_model_takes_a_sparsity_with_the_pattern(network: Path, tmp_path: Path) -> None:
    report = prune_model(network, tmp_path / "out.onnx", None, "block:4x1@0.75")
    assert (report.pattern, report.sparsity) == ("block:4x1", pytest.approx(0.75, abs=0.01))
    assert 0 < report.l1_removed_unstructured < report.l1_removed < 1


def test_complementary_filters_of_a_set_overlay_to_a_dense_one() -> None:
    pattern = parse_pattern("complementary:20")
    weight = np.random.default_rng(0).standard_normal((80, 400)).astype(np.float32)
    pruned = prune_weight(weight, 0.95, pattern)
    assert np.all(np.count_nonzero(pruned.reshape(4, 20, 400), axis=1) == 1)
    largest = np.abs(weight).reshape(4, 20, 400).max(axis=1)
    assert np.array_equal(np.abs(pruned).reshape(4, 20, 400).max(axis=1), largest)
    found = find_structure(pruned)
    assert (found.kind, found.axis, found.n_m[0]) == ("n:m", "output", 1)


@pytest.mark.parametrize("text", ["complementary", "complementary:1", "complementary:x", "complementary:20:4"])
def test_complementary_needs_the_size_of_a_set(text: str) -> None:
    with pytest.raises(UsageError, match="no pattern") as caught:
        parse_pattern(text)
    assert "complementary:20" in str(caught.value.hint)
