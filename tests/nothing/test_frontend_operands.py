"""Operands and attributes that do not fit each other are refused before anything computes on them.

ONNX's schemas and shape inference accept all of them; most were found by fuzzing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsetvm.core.graph import Graph
from sparsetvm.errors import ModelError
from sparsetvm.frontend.load import load_model

X = (1, 4, 6, 6)
INTS, FLOATS = np.int64, np.float32
SPECIAL = {"nan": [1, 1, float("nan"), 1], "inf": [1, 1, float("inf"), 1]}


def load(folder: Path, op: str, x: tuple[int, ...], *operands: tuple | np.ndarray | None, **attrs: object) -> Graph:
    """A model of one node; operands: shapes or data of its constants."""
    arrays = [a if a is None or isinstance(a, np.ndarray) else np.ones(a, FLOATS) for a in operands]
    names = ["" if a is None else f"c{i}" for i, a in enumerate(arrays)]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], ["y"], name="layer", **attrs)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(a, name) for a, name in zip(arrays, names, strict=True) if a is not None],
    )
    opset = 9 if op == "Upsample" else 17
    path = folder / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString())
    return load_model(path).graph


FITS = {
    "conv": ("Conv", X, (8, 2, 3, 3), (8,), {"group": 2, "kernel_shape": [3, 3], "pads": [1] * 4}),
    "conv without a bias": ("Conv", X, (8, 4, 1, 1), {}),
    "transposed": ("ConvTranspose", X, (4, 3, 2, 2), (6,), {"group": 2}),
    "gemm": ("Gemm", (2, 4), (4, 6), (6,), {}),
    "gemm with a column": ("Gemm", (2, 4), (4, 6), (2, 1), {}),
    "gemm with a number": ("Gemm", (2, 4), (4, 6), (), {}),
    "batch norm": ("BatchNormalization", X, (4,), (4,), (4,), (4,), {}),
    "batch norm of rows": ("BatchNormalization", (2, 4), (4,), (4,), (4,), (4,), {}),
    "layer norm": ("LayerNormalization", (2, 3, 4), (4,), (4,), {}),
    "layer norm of two axes": ("LayerNormalization", (2, 3, 4), (3, 4), (3, 4), {"axis": 1}),
    "pool": ("MaxPool", X, {"kernel_shape": [3, 2], "strides": [1, 2], "pads": [1, 0, 1, 0]}),
    "indices from both ends": ("Gather", (3, 4), np.array([0, 3, -4]), {"axis": 1}),
    "one index": ("Gather", (3, 4), np.array(-3), {}),
    "indices of a part": ("GatherElements", (3, 4), np.array([[3, -4]]), {"axis": -1}),
    "coordinates": ("GatherND", (3, 4), np.array([[2, 3], [-3, -4]]), {}),
    "coordinates of each sample": ("GatherND", (2, 5), np.array([[4], [-5]]), {"batch_dims": 1}),
}
FITS_NOT = {
    "bias too short": ("Conv", X, (8, 4, 3, 3), (4,), {}),
    "bias is a weight": ("Conv", X, (8, 4, 3, 3), (8, 4, 3, 3), {}),
    "huge group": ("Conv", X, (8, 4, 1, 1), {"group": (1 << 63) - 1}),
    "negative group": ("Conv", X, (8, 4, 1, 1), {"group": -(1 << 63)}),
    "channels that groups do not divide": ("Conv", X, (5, 2, 3, 3), {"group": 2}),
    "weights for other channels": ("Conv", X, (8, 3, 3, 3), {}),
    "weights of another rank": ("Conv", X, (8, 4, 3), {}),
    "another kernel": ("Conv", X, (8, 4, 3, 3), {"kernel_shape": [2, 3]}),
    "one stride": ("Conv", X, (8, 4, 3, 3), {"strides": [2]}),
    "transposed bias": ("ConvTranspose", X, (4, 3, 2, 2), (3,), {"group": 2}),
    "C too short": ("Gemm", (2, 4), (4, 6), (3,), {}),
    "C too long": ("Gemm", (2, 4), (4, 6), (7,), {}),
    "C larger than the output": ("Gemm", (1, 4), (4, 6), (2, 6), {}),
    "mean too long": ("BatchNormalization", X, (4,), (4,), (8,), (4,), {}),
    "gain of another size": ("InstanceNormalization", X, (6,), (6,), {}),
    "scale too long": ("LayerNormalization", (2, 3, 4), (5,), {}),
    "bias of another rank": ("LayerNormalization", (3, 4), (4,), (1, 3, 4), {}),
    "pads for one axis": ("MaxPool", X, {"kernel_shape": [3, 3], "pads": [1, 1]}),
    "upsample of too few axes": ("Upsample", X, np.ones(3, FLOATS), {}),
    "upsample by nan": ("Upsample", X, np.array(SPECIAL["nan"], FLOATS), {}),
    "upsample by infinity": ("Upsample", X, np.array(SPECIAL["inf"], FLOATS), {}),
    "resize by too many scales": ("Resize", X, None, np.ones(5, FLOATS), {}),
    "resize by a matrix of scales": ("Resize", X, None, np.ones((4, 1), FLOATS), {}),
    "resize to a negative size": ("Resize", X, None, None, np.array([1, 4, -6, 6]), {"mode": "linear"}),
    "resize to petabytes": ("Resize", X, None, None, np.array([1, 4, 1 << 50, 1]), {"mode": "linear"}),
    "index beyond the end": ("Gather", (3, 4), np.array([0, 3]), {}),
    "one index beyond the end": ("Gather", (3, 4), np.array(3), {}),
    "index beyond the start": ("Gather", (3, 4), np.array([-5], np.int32), {"axis": -1}),
    "smallest index": ("Gather", (3, 4), np.array([-(1 << 63)]), {}),
    "index of an element beyond the end": ("GatherElements", (3, 4), np.array([[4]]), {"axis": 1}),
    "coordinate beyond its axis": ("GatherND", (4, 3), np.array([[0, 3]]), {}),
    "more coordinates than axes": ("GatherND", (4, 3), np.array([[0, 1, 2]]), {}),
    "no index from the end": ("RoiAlign", X, np.ones((1, 4), FLOATS), np.array([-1]), {}),
    "scattered beyond the end": ("ScatterElements", (3, 4), np.array([[3]]), (1, 1), {}),
    "scattered before the start": ("ScatterND", (3, 4), np.array([[-4]]), (1, 4), {}),
    "split into a matrix": ("Split", X, np.array([[2], [2]]), {"axis": 1}),
}


@pytest.mark.parametrize("case", FITS)
def test_operands_that_fit_are_imported(case: str, tmp_path: Path) -> None:
    op, x, *operands, attrs = FITS[case]
    assert [node.op for node in load(tmp_path, op, x, *operands, **attrs).nodes] == [op]


@pytest.mark.parametrize("case", FITS_NOT)
def test_operands_that_do_not_fit_are_refused_with_the_layer_and_the_next_step(case: str, tmp_path: Path) -> None:
    op, x, *operands, attrs = FITS_NOT[case]
    with pytest.raises(ModelError, match=r"layer") as caught:
        load(tmp_path, op, x, *operands, **attrs)
    assert caught.value.layer == "layer"
    assert caught.value.hint
    assert len(str(caught.value)) < 700
