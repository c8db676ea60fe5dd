"""Write the seed corpus: small models, weights, logs and targets of every kind.

PYTHONPATH=tests:tests/nothing python tests/fuzz/make_corpus.py
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import log_samples
import numpy as np
import onnx
from models import ModelBuilder, bert, conv_net, mlp, mobile_net
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.backend.test.case.node import collect_testcases

from sparsetvm.core.layout import Planes
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload
from sparsetvm.log.line import encode_line

CORPUS = Path(__file__).parent / "corpus"
IMAGE = Planes(1, 8, 14, 14, 1, 16)
CONV = Workload(
    "conv2d",
    8,
    72,
    196,
    IMAGE,
    IMAGE,
    Epilogue(),
    log_samples.PATTERN,
    ConvGeometry(8, 14, 14, (3, 3), pads=(1, 1, 1, 1)),
)
HEADER = '<ir_version: 9, opset_import: ["" : 17, "local" : 1]>\n'
TEXTS = {
    "if": "g (float[2,4] x) => (y) { c = Constant<value = bool {1}>()"
    " y = If(c) <then_branch = a () => (z) { z = Relu(x) }, else_branch = b () => (w) { w = Neg(x) }> }",
    "shapes": "g (float[N,4] x) => (y) { s = Shape(x) i = Constant<value_ints=[0]>() d = Gather(s, i)"
    " m = Constant<value_ints=[-1]>() t = Concat<axis=0>(d, m) y = Reshape(x, t) }",
    "function": "g (float[2,4] x) => (y) { y = local.F(x) }\n"
    '<domain: "local", opset_import: ["" : 17]> F (a) => (b) { c = Relu(a) b = Neg(c) }',
    "ids": "g (int64[1,4] i, int64[1,4] m) => (y) <float[3,2] t = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}> { e = Gather(t, i)"
    " a = Constant<value = int64 {1}>() s = CumSum(m, a) q = Mul(s, m) p = Gather(t, q) y = Add(e, p) }",
    "indices": "g (int64[2,1] i, float[3,4] x) => (y, z, w) <float[2,1] u = {1.0, 2.0}>"
    " { y = GatherElements<axis=1>(x, i) z = GatherND(x, i) w = ScatterElements<axis=-1>(x, i, u) }",
    "fold": "g (float[2,2] x) => (y) <float[2,2] w = {1.0, 0.0, 0.0, 2.0}> { t = Transpose<perm=[1,0]>(w)"
    " u = Add(t, w) y = MatMul(x, u) }",
}


def models() -> dict[str, bytes]:
    small = {
        "mlp": mlp((4, 6, 3), sparsity=0.5),
        "conv": conv_net(size=4, width=4, sparsity=0.5),
        "mobile": mobile_net(size=4, width=4, sparsity=0.5),
        "bert": bert(seq=2, hidden=8, heads=2, sparsity=0.5),
        "half": _float16(),
    }
    found = {name: builder.model().SerializeToString() for name, builder in small.items()}
    found.update({name: parser.parse_model(HEADER + text).SerializeToString() for name, text in TEXTS.items()})
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="m.onnx")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", info[:1], info[1:], [tensor])
    imports = [helper.make_opsetid("", 17)]
    found["external"] = helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString()
    return found


def _float16() -> ModelBuilder:
    builder = ModelBuilder()
    x = builder.input("x", (1, 4), TensorProto.FLOAT16)
    builder.initializers.append(numpy_helper.from_array(np.eye(4, dtype=np.float16), "w"))
    builder.op("MatMul", x, "w", out="y")
    return builder.output("y")


def operators() -> dict[str, bytes]:
    """The smallest node test of each operator that ONNX has, its inputs behind the first made constant."""
    with np.errstate(all="ignore"):
        cases = collect_testcases(None)
    found: dict[str, bytes] = {}
    for case in cases:
        nodes = case.model.graph.node if case.model is not None else []
        if len(nodes) != 1 or not case.data_sets:
            continue
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        for info, array in list(zip(model.graph.input, case.data_sets[0][0], strict=False))[1:]:
            if isinstance(array, np.ndarray) and array.size <= 64:
                model.graph.initializer.append(numpy_helper.from_array(array, info.name))
        name, content = f"op_{nodes[0].op_type}", model.SerializeToString()
        if len(content) < 2048 and len(content) < len(found.get(name, bytes(2048))):
            found[name] = content
    return found


def weights() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    found = {}
    for how in range(3):
        for pattern, (m, k) in enumerate(((8, 16), (32, 32), (3, 100), (64, 8), (1, 199), (150, 7))):
            head = struct.pack("<HHBB", m - 1, k - 1, how + 3 * pattern, pattern)
            mask = rng.random((8, 8)) < 0.2
            found[f"{how}_{pattern}"] = head + np.packbits(np.kron(mask, np.ones((1, 4), bool))).tobytes()
    return found


def logs() -> dict[str, bytes]:
    records = [log_samples.record(), log_samples.record(None), log_samples.record(stage="final")]
    lines = [encode_line(record) for record in records]
    return {
        "good": b"\0" + b"".join(lines),
        "signed": b"\1" + b"".join(lines),
        "torn": b"\0" + b"".join(lines)[:-40],
        "conv": b"\1" + encode_line(log_samples.record(workload=CONV)),
    }


def targets() -> dict[str, bytes]:
    texts = [
        "cpu",
        "cuda",
        "cuda:1",
        "cuda,sm_90",
        "cuda,tf32",
        "cuda,sm_90,tf32",
        "cpu,native",
        "",
        ",",
        "cuda:\u00b2",
    ]
    return {
        f"{at:02}": b"\x04" + text.encode()
        for at, text in enumerate([*texts, *(f"cpu,{name}" for name in ("znver4", "haswell", "sapphirerapids"))])
    }


if __name__ == "__main__":
    for target, files in {
        "loader": models() | operators(),
        "analysis": weights(),
        "log": logs(),
        "target": targets(),
    }.items():
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (CORPUS / target / name).write_bytes(content)
        sys.stdout.write(f"{target}: {len(files)} files, {sum(map(len, files.values()))} bytes\n")
