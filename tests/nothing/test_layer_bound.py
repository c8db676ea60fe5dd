"""The bound of `verify --per-layer` holds what rounding to float16 may do, and no more."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Node
from sparsetvm.core.workload import Epilogue
from sparsetvm.runtime.layer_bound import LayerReference, worst


def layer(weight: np.ndarray) -> Node:
    attrs = {"weight": weight, "bias": None, "epilogue": Epilogue(), "conv": None}
    return Node("layer", "matmul", ["x"], ["y"], attrs, SPARSETVM_DOMAIN)


def rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 1e-6])  # factors of 1e-6 have few digits in float16
@pytest.mark.parametrize("half", [False, True])
def test_products_in_float16_are_within_their_bound_and_beyond_that_of_float32(scale: float, half: bool) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((24, 64)).astype(np.float32)
    x = scale * rng.standard_normal((16, 64)).astype(np.float32)
    y = rounded(x) @ rounded(weight).T
    y = rounded(y) if half else y

    def of_bound(arithmetic: str, stored_half: bool) -> float:
        reference = LayerReference(layer(weight), arithmetic, onnxruntime.InferenceSession, stored_half)  # type: ignore[arg-type]
        return worst(y, *reference(x, None))[0]

    assert 0.01 < of_bound("float16", half) <= 1
    assert of_bound("float32", False) > 10
