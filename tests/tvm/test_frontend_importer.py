"""The frontend and TVM's ONNX importer agree: on the table of operators, and on single nodes."""

from __future__ import annotations

import numpy as np
import pytest
from graph_eval import evaluate
from models import ModelBuilder, bert, conv_net, mobile_net, random_inputs, relative_error

from sparsetvm.frontend.load import load_model
from sparsetvm.frontend.support import CONTRIB_OPS, DYNAMIC_OPS, QUANTIZED_OPS, SUPPORTED_OPS
from sparsetvm.frontend.to_onnx import single_node_model
from sparsetvm.rewrite.canonical import canonicalize


def test_supported_table_is_that_of_the_installed_importer():
    from tvm.relax.frontend.onnx import onnx_frontend

    known = set(onnx_frontend._get_convert_map())
    assert known - DYNAMIC_OPS - CONTRIB_OPS - QUANTIZED_OPS == SUPPORTED_OPS


def run_tvm(model, inputs: list[np.ndarray]) -> np.ndarray:
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    mod = from_onnx(model, keep_params_in_input=False)
    mod = relax.transform.DecomposeOpsForInference()(mod)
    machine = relax.VirtualMachine(relax.build(mod, target=tvm.target.Target("llvm")), tvm.cpu())
    result = machine["main"](*[tvm.runtime.tensor(np.ascontiguousarray(array)) for array in inputs])
    return (result if isinstance(result, tvm.runtime.Tensor) else result[0]).numpy()


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("build", [conv_net, mobile_net, bert])
def test_each_operator_of_a_canonical_model_imports_alone(build, opset, tmp_path):
    builder: ModelBuilder = build(opset=opset)
    graph = load_model(builder.save(tmp_path / "m.onnx")).graph
    canonicalize(graph)
    values = evaluate(graph, random_inputs(builder.model()), keep=True)
    tried = set()
    for node in graph.nodes:
        if node.op in tried:
            continue
        tried.add(node.op)
        model = single_node_model(node, graph)
        found = run_tvm(model, [values[info.name].astype(np.float32) for info in model.graph.input])
        assert relative_error(found, values[node.outputs[0]]) < 1e-5, node.op
