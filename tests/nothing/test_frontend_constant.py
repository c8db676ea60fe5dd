"""Constant nodes: every form of number that the standard knows, and nothing that only bears its name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from sparsetvm.errors import ModelError
from sparsetvm.frontend.attributes import constant_data


def constant(**attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], **attributes)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value_int": 3}, np.array(3, np.int64)),
        ({"value_ints": [3, 4]}, np.array([3, 4], np.int64)),
        ({"value_float": 0.5}, np.array(0.5, np.float32)),
        ({"value_floats": [0.5, 1.5]}, np.array([0.5, 1.5], np.float32)),
    ],
)
def test_numbers_have_the_type_of_their_attribute(attributes: dict[str, Any], expected: np.ndarray) -> None:
    found = constant_data(constant(**attributes), "c")
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", ["value_int", "value_ints", "value_float", "value_floats", "value_string", "value"])
def test_text_by_the_name_of_a_number_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"Constant of kind '{name}' is not supported") as caught:
        constant_data(constant(**{name: ""}), "layer1.c")
    assert caught.value.layer == "layer1.c"


def test_several_values_are_refused() -> None:
    with pytest.raises(ModelError, match="exactly one value"):
        constant_data(constant(value_int=1, value_float=1.0), "c")
