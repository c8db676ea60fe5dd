"""Integer inputs at run time: values that are refused, values that are drawn, and what a manifest may say of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsetvm.core.manifest import TensorInfo, manifest_path, read_manifest, sha256_of
from sparsetvm.errors import ModelError, UsageError
from sparsetvm.runtime.arrays import Checks, RangeChecks, checks_of, random_arrays

IDS = TensorInfo("ids", (2, 3), "int64", range=(-50, 49), random_below=50)
MASK = TensorInfo("mask", (4, 5), "int64", random_below=2)
FLOATS = TensorInfo("x", (2, 3), "float32")


def ids(*values: int) -> np.ndarray:
    return np.array([*values, *[0] * (6 - len(values))]).reshape(2, 3)


@pytest.mark.parametrize("value", [50, -51, 99999999, -99999999, 2**63 - 1, -(2**63)])
def test_value_out_of_range_is_refused_with_input_value_place_and_range(value):
    checks = checks_of([IDS], None)
    checks([ids()])  # the quick way of the second call must look at values, too
    with pytest.raises(UsageError, match="'ids'") as error:
        checks([ids(0, 0, 0, 7, value)])
    assert f"{value} at [1, 1]" in str(error.value)
    assert "-50 to 49" in str(error.value)
    assert "next step" in str(error.value)


@pytest.mark.parametrize("value", [0, 49, -50])
def test_value_within_range_passes(value):
    (found,) = checks_of([IDS], None)([ids(value)])
    assert found.flat[0] == value


def test_arrays_that_stay_where_they_are_are_not_looked_at():
    far = [object()]
    assert checks_of([IDS], None, keep=lambda _: True)(far) == far


def test_a_number_without_axes_is_checked():
    with pytest.raises(UsageError, match="the value 7 is out of range"):
        checks_of([TensorInfo("at", (), "int32", range=(-3, 2))], None)([np.array(7, np.int32)])


def test_models_without_ranges_have_the_quick_checks():
    assert type(checks_of([FLOATS, MASK], None)) is Checks
    assert type(checks_of([FLOATS, IDS], None)) is RangeChecks


def test_drawn_ids_fill_their_range():
    drawn = random_arrays([TensorInfo("ids", (1, 4096), "int32", range=(-50, 49), random_below=50)])["ids"]
    assert (drawn.dtype, drawn.min(), drawn.max()) == (np.int32, 0, 49)
    assert len(np.unique(drawn)) == 50


def test_drawn_masks_hide_something_and_no_whole_row():
    drawn = random_arrays([TensorInfo("mask", (500, 3), "bool", random_below=2)])["mask"]
    assert drawn.dtype == np.bool_
    assert drawn.any(axis=-1).all()
    assert not drawn.all(axis=-1).all()


def test_inputs_that_nothing_is_known_of_stay_zero():
    assert not random_arrays([TensorInfo("n", (3,), "int64", range=(-5, 4))])["n"].any()


def test_draws_depend_on_the_seed_alone():
    first, again, other = (random_arrays([IDS, FLOATS, MASK], seed) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


@given(
    dtype=st.sampled_from(["int8", "uint8", "int32", "int64", "uint64", "bool"]),
    below=st.integers(1, 1 << 64),
    shape=st.lists(st.integers(1, 3), max_size=3),
)
def test_draws_keep_to_type_and_bound(dtype, below, shape):
    most = 1 if dtype == "bool" else int(np.iinfo(dtype).max)
    info = TensorInfo("x", tuple(shape), dtype, random_below=min(below, most + 1))
    drawn = random_arrays([info])["x"]
    assert (drawn.shape, drawn.dtype) == (info.shape, np.dtype(dtype))
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < min(below, most + 1)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "m.so"
    path.write_bytes(b"library")
    return path


def signature_of(library: Path, **entry: object) -> TensorInfo:
    inputs = [{"name": "ids", "shape": [1, 4], "dtype": "int64", **entry}]
    document = {"schema": 1, "library_sha256": sha256_of(library), "inputs": inputs, "outputs": []}
    manifest_path(library).write_text(json.dumps(document))
    found = read_manifest(library)
    assert found is not None
    return found[1].inputs[0]


def test_older_manifest_says_nothing_of_values(library):
    info = signature_of(library)
    assert (info.range, info.random_below) == (None, None)


def test_manifest_says_which_values_are_admitted_and_drawn(library):
    info = signature_of(library, range=[-50, 49], random_below=50)
    assert (info.range, info.random_below) == ((-50, 49), 50)


@pytest.mark.parametrize(
    "entry",
    [
        {"range": [5, 4]},
        {"range": [0]},
        {"range": [0, 1 << 63]},
        {"range": "0-5"},
        {"range": [0, 1], "dtype": "float32"},
        {"random_below": 0},
        {"random_below": -1},
        {"random_below": 1 << 64},
        {"random_below": 3, "dtype": "bool"},
        {"random_below": 2.5},
        {"random_below": 2, "dtype": "float16"},
    ],
)
def test_impossible_values_are_refused(library, entry):
    with pytest.raises(ModelError, match="is damaged"):
        signature_of(library, **entry)
