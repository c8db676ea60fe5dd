"""ONNX's backend tests through sparsetvm: which are in scope, how one is run, as given and with constant weights.

Node tests pass weights as inputs. "constant" turns every float input but the first into an initializer and prunes the
weights of products to 30 %; the expected outputs then come from ONNX's reference evaluator.
"""

from __future__ import annotations

import functools
import importlib
import math
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from checklib.in_memory import InMemory, sparse_config
from checklib.operators import GROUP_OF
from sparsetvm.core.target import host_target
from sparsetvm.onnx_backend import SparseTvmBackend, SparseTvmRep, bind_inputs

DENSITY = 0.3
MODES = ("given", "constant")
MODEL_KINDS = ("simple", "pytorch-converted", "pytorch-operator")
# Types of float inference and what its graphs index, count and compare with.
_TYPES = {
    getattr(TensorProto, name)
    for name in [
        "FLOAT",
        "FLOAT16",
        "BOOL",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
    ]
}
MODEL = "whole models"
_LIGHT = "data/light/light_*.onnx"
LIGHT_NAMES = "test_light_"
_WEIGHTS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


@dataclass
class Case:
    """operator: the one it tests; "" for a model test."""

    name: str
    operator: str
    model: onnx.ModelProto
    data: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float


@functools.cache
def node_cases() -> dict[str, Case]:
    """Node tests in scope by name."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        node = importlib.import_module("onnx.backend.test.case.node")
        found = node.collect_testcases(None)
    cases = {}
    for test in [*found, *node._NodeTestCases]:
        operator = _operator_of(test.model)
        if operator and not test.name.startswith("test_training_") and _in_scope(test.model):
            data = [([_array(x) for x in inputs], [_array(y) for y in outputs]) for inputs, outputs in test.data_sets]
            cases[test.name] = Case(test.name, operator, test.model, data, test.rtol, test.atol)
    # The expanded form of an operator out of scope is out of scope as well.
    return {
        name: case for name, case in cases.items() if "_expanded" not in name or name.split("_expanded")[0] in cases
    }


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _operator_of(model: onnx.ModelProto) -> str:
    """The operator in scope that a node test is for; of an expanded function any of its nodes. "" out of scope."""
    operators = [node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")]
    if len(operators) < len(model.graph.node) or not all(operator in GROUP_OF for operator in operators):
        return ""
    return operators[0] if len(set(operators)) == 1 else f"expanded {'+'.join(sorted(set(operators)))}"


def _in_scope(model: onnx.ModelProto) -> bool:
    """Inference, in types of float models."""
    if any(a.name == "training_mode" and a.i for node in model.graph.node for a in node.attribute):
        return False
    infos = [*model.graph.input, *model.graph.output]
    if not all(info.type.HasField("tensor_type") and info.type.tensor_type.elem_type in _TYPES for info in infos):
        return False
    return all(a.i in _TYPES for node in model.graph.node for a in node.attribute if a.name == "to")


def with_constants(case: Case) -> Case | None:
    """The test with constant weights; None when it has no float input after the first, or several data sets."""
    if case.operator == MODEL:
        return _pruned_model(case)
    inputs, _ = case.data[0]
    names = [info.name for info in case.model.graph.input]
    rest = {
        name: array
        for name, array in list(zip(names, inputs, strict=True))[1:]
        if isinstance(array, np.ndarray) and array.dtype.kind == "f"
    }
    if not rest or len(case.data) != 1:
        return None
    weights = {
        node.input[_WEIGHTS[node.op_type]] for node in case.model.graph.node if node.op_type in _WEIGHTS
    } & rest.keys()
    bound = {name: _pruned(array) if name in weights else array for name, array in rest.items()}
    model = bind_inputs(case.model, bound)
    feed = {name: array for name, array in zip(names, inputs, strict=True) if name not in bound}
    outputs = case.data[0][1]
    if weights:
        with np.errstate(all="ignore"):
            outputs = ReferenceEvaluator(model).run(None, feed)
    return Case(case.name, case.operator, model, [(list(feed.values()), outputs)], case.rtol, case.atol)


def _pruned_model(case: Case) -> Case | None:
    """The model with its own weights pruned; None for one without."""
    weights = {node.input[_WEIGHTS[node.op_type]] for node in case.model.graph.node if node.op_type in _WEIGHTS}
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    found = [tensor for tensor in model.graph.initializer if tensor.name in weights]
    if not found:
        return None
    for tensor in found:
        tensor.CopyFrom(numpy_helper.from_array(_pruned(numpy_helper.to_array(tensor)), tensor.name))
    given = {tensor.name for tensor in model.graph.initializer}
    names = [info.name for info in model.graph.input if info.name not in given]
    data = []
    for inputs, _ in case.data:
        data.append((inputs, ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))))
    return Case(case.name, case.operator, model, data, case.rtol, case.atol)


def _pruned(weight: np.ndarray) -> np.ndarray:
    if weight.ndim < 2:
        return weight
    keep = np.random.default_rng(weight.size).random(weight.shape) < DENSITY
    return np.where(keep, weight, weight.dtype.type(0))


class _InMemoryRep(SparseTvmRep):
    """Compiled in memory, with a template that skips zeros for every layer."""

    def _compiled(self, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        with tempfile.TemporaryDirectory(prefix="sparsetvm-check-") as folder:
            path = Path(folder) / "model.onnx"
            onnx.save(model, path)
            return InMemory(path, host_target(1), sparse_config, shapes)


class _InMemoryBackend(SparseTvmBackend):
    rep = _InMemoryRep


def check(case: Case, *, in_memory: bool = True) -> None:
    """Compile and run the test. Raises AssertionError where outputs differ, sparsetvm's errors where it refuses."""
    from onnx.backend.test.runner import Runner

    rep = (_InMemoryBackend if in_memory else SparseTvmBackend).prepare(case.model)
    for inputs, expected in case.data:
        Runner.assert_similar_outputs(expected, rep.run(inputs), case.rtol, case.atol)


def run_named(item: tuple[str, str]) -> str:
    """Run test `item[0]` in mode `item[1]`: "passed", "no weights", or raises. For worker processes."""
    name, mode = item
    case: Case | None = all_cases()[name]
    if mode == "constant":
        case = with_constants(case) if case else None
    if case is None:
        return "no weights"
    check(case)
    return "passed"


@functools.cache
def all_cases() -> dict[str, Case]:
    """Node tests and model tests in scope by name."""
    return node_cases() | model_cases()


@functools.cache
def model_cases() -> dict[str, Case]:
    """Model tests in scope that ONNX brings along, by name; "light" ones are whole networks without their weights."""
    from onnx.backend.test.loader import load_model_tests

    cases = {}
    for test in [test for kind in MODEL_KINDS for test in load_model_tests(kind=kind)]:
        folder = Path(str(test.model_dir))
        case = _model_case(test.name, folder / "model.onnx", test.rtol, test.atol)
        sets = sorted(folder.glob("test_data_set_*"))
        case.data = [(_tensors(at, "input"), _tensors(at, "output")) for at in sets if case.operator]
        if case.operator:
            cases[case.name] = case
    cases.update(_light_cases())
    return cases


def _light_cases() -> dict[str, Case]:
    cases = {}
    for path in sorted(Path(importlib.import_module("onnx.backend.test").__file__ or "").parent.glob(_LIGHT)):
        case = _model_case(f"test_{path.stem}", path, 1e-3, 1e-5)
        given = {tensor.name for tensor in case.model.graph.initializer}
        (image,) = [info for info in case.model.graph.input if info.name not in given]
        shape = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
        # As ONNX's own runner makes it.
        x = (np.arange(math.prod(shape)).reshape(shape) / math.prod(shape)).astype(np.float32)
        case.data = [([x], [_tensor(path.with_name(f"{path.stem}_output_0.pb"))])]
        cases[case.name] = case
    return cases


def _model_case(name: str, path: Path, rtol: float, atol: float) -> Case:
    model = onnx.load(path)
    in_scope = all(node.op_type in GROUP_OF for node in model.graph.node) and _in_scope(model)
    return Case(name, MODEL if in_scope else "", model, [], rtol, atol)


def _tensors(folder: Path, kind: str) -> list[Any]:
    return [_tensor(folder / f"{kind}_{at}.pb") for at in range(len(list(folder.glob(f"{kind}_*.pb"))))]


def _tensor(path: Path) -> np.ndarray:
    tensor = TensorProto()
    tensor.ParseFromString(path.read_bytes())
    return numpy_helper.to_array(tensor)
