"""Which values the integer inputs of a model admit, and which of them are drawn, read from its graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import ModelBuilder
from onnx import TensorProto

from sparsetvm.analysis.integer_inputs import integer_inputs, merged
from sparsetvm.core.graph import IntegerInput
from sparsetvm.frontend.load import load_model

INT64, INT32, BOOL = TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL
IDS, MASK, UNKNOWN = IntegerInput((-50, 49), 50), IntegerInput(None, 2), IntegerInput(None, None)


class Case:
    """A model under construction, with one integer input x of shape (2, 6)."""

    def __init__(self, folder: Path, kind: int = INT64) -> None:
        self.builder, self.folder = ModelBuilder(opset=18), folder
        self.x = self.builder.input("x", (2, 6), kind)
        self.op = self.builder.op

    def numbers(self, *values: int) -> str:
        return self.builder.const(np.array(values, np.int64))

    def table(self, rows: int) -> str:
        return self.builder.const(np.ones((rows, 4), np.float32))

    def look_up(self, indices: str, rows: int = 50) -> str:
        return self.op("Gather", self.table(rows), indices)

    def found(self, *outputs: str) -> IntegerInput:
        path = self.builder.output(*outputs).save(self.folder / "m.onnx")
        return integer_inputs(load_model(path).graph)["x"]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_ids_are_bounded_by_the_table_they_index(case):
    assert case.found(case.look_up(case.x)) == IDS


def test_the_smallest_table_bounds(case):
    assert case.found(case.look_up(case.x, 80), case.look_up(case.x, 50), case.look_up(case.x, 60)) == IDS


@pytest.mark.parametrize(
    "move",
    [
        lambda c: c.op("Reshape", c.x, c.numbers(3, 4)),
        lambda c: c.op("Transpose", c.x, perm=[1, 0]),
        lambda c: c.op("Unsqueeze", c.x, c.numbers(0)),
        lambda c: c.op("Expand", c.x, c.numbers(3, 2, 6)),
        lambda c: c.op("Cast", c.x, to=INT32),
        lambda c: c.op("Concat", c.x, c.builder.const(np.array([[0], [49]])), axis=1),
        lambda c: c.op("Flatten", c.op("Identity", c.x)),
    ],
)
def test_operators_that_move_elements_keep_the_bound(case, move):
    assert case.found(case.look_up(move(case))) == IDS


def test_a_part_that_is_looked_up_bounds_what_is_drawn_but_forbids_nothing(case):
    part = case.op("Slice", case.x, case.numbers(0), case.numbers(3), case.numbers(1))
    assert case.found(case.look_up(part)) == IntegerInput(None, 50)


def test_compared_ids_are_ids(case):
    """RoBERTa: positions count the tokens that are no padding."""
    real = case.op("Cast", case.op("Not", case.op("Equal", case.x, case.numbers(1))), to=INT64)
    positions = case.op("Mul", case.op("CumSum", real, case.builder.const(np.array(1))), real)
    assert case.found(case.look_up(case.x), case.look_up(case.op("Add", positions, case.numbers(1)), 8)) == IDS


def test_positions_that_may_leave_their_table_leave_ids_at_zero_but_checked(case):
    real = case.op("Cast", case.op("Not", case.op("Equal", case.x, case.numbers(1))), to=INT64)
    positions = case.op("CumSum", real, case.builder.const(np.array(1)))
    assert case.found(case.look_up(case.x), case.look_up(positions, 6)) == IntegerInput((-50, 49), None)


@pytest.mark.parametrize("kind", [INT64, INT32, BOOL])
def test_what_is_only_compared_or_made_a_float_is_a_mask(tmp_path, kind):
    case = Case(tmp_path, kind)
    scores = case.builder.input("s", (2, 6))
    chosen = case.op("Where", case.op("Cast", case.x, to=BOOL), scores, case.builder.const(-1.0))
    assert case.found(chosen, case.op("Cast", case.x, to=TensorProto.FLOAT)) == MASK


def test_products_of_masks_are_masks(case):
    """DeBERTa multiplies the mask of rows and that of columns."""
    rows, columns = case.op("Unsqueeze", case.x, case.numbers(1)), case.op("Unsqueeze", case.x, case.numbers(2))
    assert case.found(case.op("Cast", case.op("Mul", rows, columns), to=BOOL)) == MASK


def test_positions_counted_in_a_mask_are_drawn_when_all_lie_in_their_table(case):
    """OPT."""
    sums = case.op("Mul", case.op("CumSum", case.x, case.builder.const(np.array(1))), case.x)
    positions = case.op("Add", case.op("Sub", sums, case.numbers(1)), case.numbers(2))
    assert case.found(case.look_up(positions, 8)) == MASK


def test_positions_counted_in_a_mask_are_not_drawn_when_one_may_lie_beyond(case):
    sums = case.op("CumSum", case.x, case.builder.const(np.array(1)))
    assert case.found(case.look_up(sums, 6)) == UNKNOWN


@pytest.mark.parametrize(
    "index",
    [
        lambda c: c.op("Add", c.x, c.numbers(1_000_000)),
        lambda c: c.op("Mul", c.x, c.numbers(-51)),
        lambda c: c.op("Abs", c.op("Neg", c.op("Sub", c.x, c.numbers(60)))),
    ],
)
def test_indices_computed_beyond_the_table_are_not_known(case, index):
    chosen = case.op("Cast", index(case), to=INT64)
    assert case.found(case.look_up(chosen)) == UNKNOWN


def test_an_operator_without_a_rule_is_not_known(case):
    assert case.found(case.op("Mod", case.numbers(7), case.x)) == UNKNOWN


def test_one_beyond_the_table_is_not_known_and_one_within_is(case, tmp_path):
    assert case.found(case.look_up(case.op("Add", case.x, case.numbers(49)))) == UNKNOWN
    other = Case(tmp_path)
    assert other.found(other.look_up(other.op("Add", other.x, other.numbers(48)))) == MASK


def test_overflow_proves_nothing(case):
    huge = case.op("Mul", case.op("Mul", case.x, case.numbers(1 << 62)), case.numbers(4))
    assert case.found(case.look_up(huge)) == UNKNOWN


def test_what_is_rounded_from_floats_says_nothing_about_the_input(case):
    floats = case.op("Cast", case.x, to=TensorProto.FLOAT)
    assert case.found(case.look_up(case.op("Cast", floats, to=INT64))) == MASK


@pytest.mark.parametrize(
    ("op", "data", "attrs", "expected"),
    [
        ("GatherElements", (2, 9), {"axis": 1}, IntegerInput((-9, 8), 9)),
        ("GatherElements", (2, 9), {"axis": -1}, IntegerInput((-9, 8), 9)),
        ("GatherND", (9, 8, 7, 9, 9, 9), {}, IntegerInput((-9, 8), 7)),
        ("Gather", (4, 9), {"axis": -1}, IntegerInput((-9, 8), 9)),
    ],
)
def test_every_operator_with_indices_bounds_them(case, op, data, attrs, expected):
    assert case.found(case.op(op, case.builder.const(np.ones(data, np.float32)), case.x, **attrs)) == expected


@pytest.mark.parametrize(("rows", "expected"), [(50, IntegerInput((-50, 49), 50)), (1000, IntegerInput(None, 128))])
def test_small_types_bound_themselves(tmp_path, rows, expected):
    case = Case(tmp_path, TensorProto.INT8)
    assert case.found(case.look_up(case.op("Cast", case.x, to=INT64), rows)) == expected


def test_floats_are_not_asked(tmp_path):
    builder = ModelBuilder()
    path = builder.output(builder.relu(builder.input("x", (1, 4)))).save(tmp_path / "m.onnx")
    assert integer_inputs(load_model(path).graph) == {}


def test_sizes_of_one_model_agree_on_what_all_say():
    small, large = {"x": IntegerInput((-5, 4), 5)}, {"x": IntegerInput((-9, 8), 9)}
    assert merged([small, small]) == small
    assert merged([small, large]) == {"x": IntegerInput(None, 5)}
    assert merged([small, {"x": IntegerInput((-5, 4), None)}]) == {"x": IntegerInput((-5, 4), None)}
