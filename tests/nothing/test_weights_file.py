"""Weights beside a library."""

import numpy as np
import pytest

from sparsetvm.core.weights_file import ALIGNMENT, WeightArray, map_weights, write_weights
from sparsetvm.errors import ModelError

ARRAYS = [np.arange(7, dtype=np.float32), np.array([3], np.int8), np.ones((2, 3), np.int32)]


def test_arrays_come_back_aligned(tmp_path):
    placed = write_weights(tmp_path / "w", ARRAYS)
    for array, found in zip(ARRAYS, map_weights(tmp_path / "w", placed), strict=True):
        np.testing.assert_array_equal(array, found)
        assert (found.dtype, found.ctypes.data % ALIGNMENT) == (array.dtype, 0)


@pytest.mark.parametrize(
    "lie",
    [
        WeightArray((8,), "float32", 0x10000), WeightArray((1 << 40,), "float32", 0), WeightArray((1,), "float32", -64),
        WeightArray((-1,), "float32", 0), WeightArray((1,), "object", 0), WeightArray((1,), "float32", 3),
    ],
)  # fmt: skip
def test_manifest_that_lies_is_refused(tmp_path, lie):
    write_weights(tmp_path / "w", ARRAYS)
    with pytest.raises(ModelError, match="does not hold"):
        map_weights(tmp_path / "w", [lie])


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match="cannot read the weights"):
        map_weights(tmp_path / "none", [])
