"""Float16 models are computed in float32, with one conversion at each float16 input and output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from canonical_checks import ops
from float16 import half_inputs, rounded, to_float16
from graph_eval import evaluate
from models import ModelBuilder, bert, conv_net, mlp, mobile_net, relative_error
from onnx import TensorProto, helper

from sparsetvm.core.graph import Graph
from sparsetvm.core.target import parse_target
from sparsetvm.errors import ModelError
from sparsetvm.frontend.load import load_model
from sparsetvm.rewrite.canonical import canonicalize
from sparsetvm.rewrite.prepare import prepare
from sparsetvm.rewrite.widen_float16 import widen_float16

CPU = parse_target("cpu,skylake-avx512")
NETWORKS = {
    "mlp": lambda: mlp(batch=3),
    "residual network": lambda: conv_net(batch=2, size=9),
    "depthwise network": lambda: mobile_net(batch=2, size=9),
    "old opset": lambda: mobile_net(size=9, opset=9),
    "encoder": lambda: bert(batch=2, seq=12),
    "new opset": lambda: bert(seq=16, opset=18, tanh=True),
}


def widened(model: onnx.ModelProto, folder: Path) -> Graph:
    onnx.save(model, folder / "m.onnx")
    graph = load_model(folder / "m.onnx").graph
    assert widen_float16(graph)
    assert graph.float16
    return graph


def check_types(graph: Graph) -> None:
    """Float16 is left at the border only; every Cast that is left changes a type; the order holds."""
    ready = {name for name, value in graph.values.items() if value.is_constant} | set(graph.inputs)
    for node in graph.nodes:
        assert ready.issuperset(filter(None, node.inputs)), node
        ready.update(node.outputs)
        if node.is_op("Cast"):
            types = [graph.values[name].dtype for name in (node.inputs[0], node.outputs[0])]
            assert types[0] != types[1]
            assert node.attrs["to"] == helper.np_dtype_to_tensor_dtype(np.dtype(types[1]))
    assert set(graph.outputs) <= ready
    for value in graph.values.values():
        assert value.dtype != "float16" or value.name in (*graph.inputs, *graph.outputs)
        assert value.data is None or str(value.data.dtype) == value.dtype


def check_meaning(graph: Graph, model: onnx.ModelProto, exact: Graph) -> None:
    """The graph computes what the float32 model does, but for the rounding of float16 outputs."""
    inputs = half_inputs(model)
    expected = evaluate(exact, {name: array.astype(np.float32) for name, array in inputs.items()})
    found = evaluate(graph, inputs)
    for info in model.graph.output:
        narrow = info.type.tensor_type.elem_type == TensorProto.FLOAT16
        assert graph.values[info.name].dtype == ("float16" if narrow else "float32")
        assert relative_error(found[info.name], expected[info.name]) < (6e-4 if narrow else 2e-6)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("keep_io", [False, True])
def test_widened_network_keeps_its_outputs_and_the_types_of_its_interface(name, keep_io, tmp_path):
    builder = rounded(NETWORKS[name]())
    exact = load_model(builder.save(tmp_path / "exact.onnx")).graph
    model = to_float16(builder.model(), keep_io=keep_io, blocked=("Softmax", "Erf", "Sqrt"))
    graph = widened(model, tmp_path)
    check_types(graph)
    assert ops(graph).count("Cast") == (0 if keep_io else len(model.graph.input) + len(model.graph.output))
    check_meaning(graph, model, exact)


@pytest.mark.parametrize("name", NETWORKS)
def test_float16_network_gets_the_layers_of_the_float32_one(name, tmp_path):
    """Functions are recognised in spite of rounded constants; zeros are found as zeros."""
    builder = NETWORKS[name]()
    wide = prepare(builder.save(tmp_path / "wide.onnx"), CPU)
    onnx.save(to_float16(builder.model(), blocked=("Softmax",)), tmp_path / "half.onnx")
    half = prepare(tmp_path / "half.onnx", CPU)
    assert [task.workload for task in half.tasks.values()] == [task.workload for task in wide.tasks.values()]
    assert [op for op in ops(half.graph) if op != "Cast"] == ops(wide.graph)
    assert any("float16" in note for note in half.notes)
    assert not any("float16" in note for note in wide.notes)


def test_float32_model_is_left_alone(tmp_path):
    graph = load_model(mlp().save(tmp_path / "m.onnx")).graph
    before = ops(graph)
    assert not widen_float16(graph)
    assert not graph.float16
    assert ops(graph) == before


def test_weights_stored_as_float16_do_not_make_a_float16_model(tmp_path):
    b = ModelBuilder()
    weight = b.op("Cast", b.const(b.weight((4, 3), 4).astype(np.float16)), to=TensorProto.FLOAT)
    path = b.output(b.op("MatMul", b.input("x", (1, 4)), weight)).save(tmp_path / "m.onnx")
    assert not widen_float16(load_model(path).graph)


FLOAT16_PARTS = {
    "constant node": lambda b, x: b.op("Add", x, b.op("Constant", value=helper.make_tensor("v", 10, [1], [1.5]))),
    "computed fill": lambda b, x: b.op(
        "Add", x, b.op("ConstantOfShape", b.op("Shape", x), value=helper.make_tensor("v", 10, [1], [0.5]))
    ),
    "clip": lambda b, x: b.op("Clip", x, b.const(np.float16(-0.5)), b.const(np.float16(0.25))),
    "resize": lambda b, x: b.op(
        "Resize", x, "", b.const(np.array([1, 1, 2, 2], np.float32)), mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    ),
    "layer norm": lambda b, x: b.op(
        "LayerNormalization", x, b.const(b.vector(6).astype(np.float16)), epsilon=1e-4, stash_type=1
    ),
    "cast like": lambda b, x: b.op("CastLike", b.op("Cast", x, to=TensorProto.FLOAT), x),
    "comparison": lambda b, x: b.op("Where", b.op("Greater", x, b.const(np.float16(0.1))), x, b.op("Neg", x)),
    "from integers": lambda b, x: b.op("Cast", b.op("Cast", x, to=TensorProto.INT64), to=TensorProto.FLOAT16),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOAT16_PARTS)
def test_float16_attributes_and_constants_are_widened(name, tmp_path):
    b = ModelBuilder(opset=17)
    x = b.input("x", (1, 2, 6, 6), TensorProto.FLOAT16)
    b.op("Relu", FLOAT16_PARTS[name](b, x), out="y")
    b.output("y")
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 2, 6, 6)).astype(np.float16)}
    graph = widened(b.model(), tmp_path)
    check_types(graph)
    expected = onnx.reference.ReferenceEvaluator(b.model()).run(None, inputs)[0]
    found = evaluate(graph, inputs, dtype=np.float32)["y"]
    assert relative_error(found, expected) < 2e-3
    canonicalize(graph)
    assert relative_error(evaluate(graph, inputs, dtype=np.float32)["y"], expected) < 2e-3


def test_interface_of_passed_through_and_constant_values(tmp_path):
    """Inputs that are outputs, constants that are outputs, outputs that others read, Casts between the two types."""
    b = ModelBuilder()
    half, wide = b.input("half", (2, 3), TensorProto.FLOAT16), b.input("wide", (2, 3))
    b.op("Identity", half, out="same")
    b.op("Cast", half, out="widened", to=TensorProto.FLOAT)
    b.op("Cast", wide, out="narrowed", to=TensorProto.FLOAT16)
    b.op("Cast", "narrowed", out="there_and_back", to=TensorProto.FLOAT)
    b.op("Identity", b.const(np.full((2, 3), 0.5, np.float16)), out="constant")
    b.op("Add", b.op("Relu", "narrowed"), "constant", out="sum")
    b.op("Mul", "sum", half, out="product")
    b.output("same", "widened", "narrowed", "there_and_back", "constant", "sum", "product")
    graph = widened(b.model(), tmp_path)
    check_types(graph)
    types = {name: graph.values[name].dtype for name in graph.outputs}
    assert types.pop("widened") == types.pop("there_and_back") == "float32"
    assert set(types.values()) == {"float16"}
    rng = np.random.default_rng(0)
    inputs = {"half": rng.standard_normal((2, 3)).astype(np.float16), "wide": rng.standard_normal((2, 3)).astype("f4")}
    found = evaluate(graph, inputs)
    for value in ("same", "widened"):
        np.testing.assert_array_equal(found[value], inputs["half"])
    np.testing.assert_array_equal(found["narrowed"], inputs["wide"].astype(np.float16))
    np.testing.assert_array_equal(found["constant"], np.full((2, 3), 0.5))
    product = (np.maximum(inputs["wide"], 0) + 0.5) * inputs["half"]
    np.testing.assert_allclose(found["product"], product.astype(np.float16), rtol=1e-3)


def test_sums_beyond_float16_do_not_overflow_inside(tmp_path):
    b = ModelBuilder()
    x = b.input("x", (1, 8), TensorProto.FLOAT16)
    big = b.op("MatMul", x, b.const(np.full((8, 4), 20000, np.float16)))
    b.op("Mul", big, b.const(np.float16(1e-4)), out="y")
    graph = widened(b.output("y").model(), tmp_path)
    found = evaluate(graph, {"x": np.ones((1, 8), np.float16)})["y"]
    np.testing.assert_allclose(found, np.full((1, 4), 16.0), rtol=1e-3)


STEPS = ("relu", "add", "scale", "to16", "to32", "there", "identity", "output", "round")


@pytest.mark.parametrize("seed", range(60))
def test_only_casts_that_change_a_type_survive_in_random_graphs(seed, tmp_path):
    """Random chains of operators in both types with Casts anywhere; a few values are outputs in between."""
    b = ModelBuilder(seed=seed)
    types = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}
    values = {name: str(b.rng.choice(list(types))) for name in ("x", "z")}
    for name, dtype in values.items():
        b.input(name, (2, 3), types[dtype])
    outputs: list[str] = []
    for step in b.rng.choice(STEPS, 12):
        x = str(b.rng.choice(list(values)[-3:]))
        dtype = values[x]
        match step:
            case "relu":
                made = b.op("Relu", x)
            case "add":
                made = b.op("Add", x, str(b.rng.choice([name for name, other in values.items() if other == dtype])))
            case "scale":
                made = b.op("Mul", x, b.const(b.rng.uniform(0.5, 1, 3).astype(dtype)))
            case "to16" | "to32":
                dtype = {"to16": "float16", "to32": "float32"}[step]
                made = b.op("Cast", x, to=types[dtype])
            case "there":
                wide = b.op("Cast", x, to=types["float32"])
                made = b.op("Cast", wide, to=types[dtype])
            case "round":
                made = b.op("Cast", b.op("Cast", x, to=TensorProto.INT32), to=types[dtype])
            case "identity":
                made = b.op("Identity", x)
            case _:
                outputs.append(x)
                continue
        values[made] = dtype
    last = list(values)[-1]
    outputs = [name for name in dict.fromkeys([*outputs, last]) if name not in ("x", "z")]
    if not outputs:
        outputs = [b.op("Relu", last)]
    model = b.output(*outputs).model()
    onnx.save(model, tmp_path / "m.onnx")
    graph = load_model(tmp_path / "m.onnx").graph
    if not widen_float16(graph):
        assert not any(value.dtype == "float16" for value in graph.values.values())
        return
    check_types(graph)
    # A conversion for each float16 input and output, and those to and from integers: the walk reads each once or twice.
    border = [name for name in (*graph.inputs, *graph.outputs) if graph.values[name].dtype == "float16"]
    casts = [node for node in graph.nodes if node.is_op("Cast")]
    integer = [n for n in casts if "int32" in (graph.values[n.inputs[0]].dtype, graph.values[n.outputs[0]].dtype)]
    assert len(casts) - len(integer) <= len(border)
    rng = np.random.default_rng(seed)
    inputs = {name: (rng.integers(-64, 64, (2, 3)) / 8).astype(values[name]) for name in ("x", "z")}
    expected = onnx.reference.ReferenceEvaluator(model).run(None, inputs)
    found = evaluate(graph, inputs, dtype=np.float32)
    if not integer:  # where rounding may cross a whole number
        for name, wanted in zip(outputs, expected, strict=True):
            assert str(graph.values[name].dtype) == str(wanted.dtype)
            np.testing.assert_allclose(found[name], wanted, rtol=5e-3, atol=5e-3)


def test_bfloat16_is_named_with_the_next_step(tmp_path):
    b = ModelBuilder()
    x = b.input("x", (1, 4), TensorProto.BFLOAT16)
    path = b.output(b.op("Relu", x, name="first")).save(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"'x' is of type bfloat16\n.*float16 models are supported") as caught:
        load_model(path)
    assert caught.value.exit_code == 3
