"""Indices out of range, whether they are inputs or computed: an error or NaN, and never memory beyond the table.

What runs on computed indices runs in a child process, so that a crash fails a test and does not end all of them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from models import ModelBuilder, run_onnxruntime
from onnx import TensorProto

import sparsetvm
from sparsetvm.cli.main import cli
from sparsetvm.core.target import cpu_flags
from sparsetvm.errors import ModelError, UsageError

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")

ROWS = 5  # of every table here
GOOD = np.array([[0, 2, -4], [2, 1, 3]])
FAR = (ROWS, -ROWS - 1, 99999999, -99999999, 2**32 + 1, 1 - 2**32, 2**62, -(2**62), 2**63 - 1, -(2**63))
_RNG = np.random.default_rng(0)
TABLE = _RNG.standard_normal((ROWS, 3)).astype(np.float32)
NUMBERS = np.arange(10, 10 + ROWS)
CUBE = _RNG.standard_normal((ROWS, ROWS, ROWS, 2)).astype(np.float32)
IMAGES = np.arange(1, ROWS + 1, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 4, 4), np.float32)
UPDATES = _RNG.standard_normal((2, 3)).astype(np.float32)
RUN = """
import sys, numpy as np, sparsetvm
with sparsetvm.load(sys.argv[1]) as module:
    feeds = np.load(sys.argv[2])["x"]
    found = [module.run({"x": feed}) for feed in feeds]
np.savez(sys.argv[3], **{name: np.stack([each[name] for each in found]) for name in found[0]})
"""


def network() -> ModelBuilder:
    """Every operator with indices, all of which are computed from the input x."""
    b = ModelBuilder("indices", opset=18)
    x = b.input("x", (2, 3), TensorProto.INT64)
    at = b.op("Sub", b.op("Add", x, b.const(np.array(1000))), b.const(np.array(1000)))
    first = b.op("Reshape", b.op("Slice", at, b.const([0]), b.const([1]), b.const([1])), b.const([2]))
    table, cube, images = b.const(TABLE), b.const(CUBE), b.const(IMAGES)
    b.op("Gather", table, at, axis=0, out="gather")
    b.op("Gather", b.const(np.ascontiguousarray(TABLE.T)), at, axis=1, out="gather_columns")
    b.op("Gather", b.const(NUMBERS), at, out="gather_numbers")
    b.op("GatherElements", table, at, axis=0, out="gather_elements")
    b.op("GatherND", cube, at, out="gather_nd")
    b.op("ScatterElements", table, at, b.const(UPDATES), axis=0, out="scatter_elements")
    b.op("ScatterND", cube, at, b.const(UPDATES[:, :2].copy()), out="scatter_nd")
    regions = np.array([[0, 0, 4, 4], [0, 0, 4, 4]], np.float32)
    attrs = {"output_height": 1, "output_width": 1, "sampling_ratio": 1}
    b.op("RoiAlign", images, b.const(regions), first, out="roi_align", **attrs)
    numbered = b.op("Concat", b.op("Reshape", b.op("Cast", first, to=1), b.const([2, 1])), b.const(regions), axis=1)
    b.op("MaxRoiPool", images, numbered, pooled_shape=[1, 1], out="max_roi_pool")
    small = b.op("Reshape", first, b.const([1, 1, 1, 2]))
    b.op(
        "MaxUnpool",
        b.const(np.ones((1, 1, 1, 2), np.float32)),
        small,
        kernel_shape=[1, 2],
        strides=[1, 2],
        out="max_unpool",
    )
    return b.output(*(name for node in b.nodes for name in node.output if not name.rsplit("_", 1)[-1].isdigit()))


FEEDS = [GOOD]
for column in (0, 2):
    for far in FAR:
        FEEDS.append(GOOD.copy())
        FEEDS[-1][0, column] = far
GATHERS = ("gather", "gather_columns", "gather_elements", "gather_nd")
SCATTERS = {"scatter_elements": TABLE, "scatter_nd": CUBE}
BY_FIRST = ("roi_align", "max_roi_pool", "max_unpool")  # which read the first column of indices only


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Outputs by name, for all of FEEDS."""
    folder = tmp_path_factory.mktemp("indices")
    sparsetvm.compile(network().save(folder / "m.onnx"), folder / "m.so", threads=1, log_dir=folder)
    np.savez(folder / "in.npz", x=np.stack(FEEDS))
    command = [sys.executable, "-c", RUN, *(str(folder / name) for name in ("m.so", "in.npz", "out.npz"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(np.load(folder / "out.npz"))


def test_indices_within_the_table_give_what_onnxruntime_gives(ran):
    expected = run_onnxruntime(network().model(), {"x": GOOD})
    assert ran.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ran[name][0], value, err_msg=name)


@pytest.mark.parametrize("name", GATHERS)
def test_what_a_wrong_index_chooses_is_nan_and_all_else_is_right(ran, name):
    good, *others = ran[name]
    for found in others:
        wrong = np.isnan(found)
        assert 0 < wrong.sum() < found.size
        np.testing.assert_array_equal(found[~wrong], good[~wrong])


def test_whole_numbers_come_from_the_nearest_row(ran):
    for found, feed in zip(ran["gather_numbers"], FEEDS, strict=True):
        np.testing.assert_array_equal(found, NUMBERS[np.clip(np.where(feed < 0, feed + ROWS, feed), 0, ROWS - 1)])


@pytest.mark.parametrize("name", SCATTERS)
def test_a_wrong_index_writes_nan_into_the_tensor(ran, name):
    for found in ran[name][1:]:
        wrong = np.isnan(found)
        assert 0 < wrong.sum() <= 2
        assert np.isin(found[~wrong], np.concatenate([SCATTERS[name].ravel(), UPDATES.ravel()])).all()


@pytest.mark.parametrize("name", BY_FIRST)
def test_regions_and_places_of_wrong_numbers_are_nan(ran, name):
    good, *others = ran[name]
    assert all(np.isnan(found).any() for found in others[: len(FAR)])
    for found in others[len(FAR) :]:
        np.testing.assert_array_equal(found, good)


def embedding(folder: Path, sequence: int | str = 4, table: np.ndarray = TABLE) -> Path:
    b = ModelBuilder("embedding")
    rows = b.op("Gather", b.const(table), b.input("ids", (1, sequence), TensorProto.INT64))
    weights = b.const(np.ones((3, 8), table.dtype))
    b.op("MatMul", rows, weights, out="y")
    return b.output("y").save(folder / "m.onnx")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding")
    sparsetvm.compile(embedding(folder), folder / "m.so", threads=1, log_dir=folder)
    return folder / "m.so"


def test_loaded_model_refuses_ids_beyond_the_table_and_draws_those_within(library):
    with sparsetvm.load(library) as module:
        assert (module.inputs[0].range, module.inputs[0].random_below) == ((-ROWS, ROWS - 1), ROWS)
        drawn = np.concatenate([module.random_inputs(seed)["ids"] for seed in range(20)])
        assert set(np.unique(drawn)) == set(range(ROWS))
        for far in FAR:
            with pytest.raises(UsageError, match=f"the value {far} at"):
                module.run({"ids": np.array([[0, 1, far, 2]])})
        np.testing.assert_array_equal(module(np.array([[0, -1, 4, -5]])), module(np.array([[0, 4, 4, 0]])))


def test_run_ends_with_a_usage_error(library, tmp_path):
    np.savez(tmp_path / "in.npz", ids=np.array([[0, 1, 99999999, 2]]))
    result = CliRunner().invoke(cli, ["run", str(library), "-i", str(tmp_path / "in.npz")])
    assert result.exit_code == 2
    for text in ("'ids'", "99999999 at [0, 2]", f"{-ROWS} to {ROWS - 1}", "next step"):
        assert text in result.stderr


def test_any_size_is_checked_and_drawn(tmp_path):
    path = embedding(tmp_path, "S")
    sparsetvm.compile(path, tmp_path / "m.so", threads=1, log_dir=tmp_path, buckets={"S": (2, 8)})
    with sparsetvm.load(tmp_path / "m.so") as module:
        assert module.inputs[0].range == (-ROWS, ROWS - 1)
        for size in (1, 2, 5, 8):
            feed = module.random_inputs(size=size)
            assert feed["ids"].shape == (1, size)
            np.testing.assert_allclose(module.run(feed)["y"], run_onnxruntime(path, feed)["y"], rtol=1e-5)
            with pytest.raises(UsageError, match="out of range"):
                module.run({"ids": np.full((1, size), ROWS)})


def test_float16_table_bounds_its_ids(tmp_path):
    sparsetvm.compile(
        embedding(tmp_path, table=TABLE.astype(np.float16)), tmp_path / "m.so", threads=1, log_dir=tmp_path
    )
    with sparsetvm.load(tmp_path / "m.so") as module:
        assert (module.inputs[0].range, module.inputs[0].random_below) == ((-ROWS, ROWS - 1), ROWS)


def test_verify_says_which_inputs_were_zeros(library, tmp_path):
    b = ModelBuilder("unknown")
    at = b.op("Add", b.input("x", (1, 4), TensorProto.INT64), b.const(np.array(ROWS - 1)))
    b.op("Gather", b.const(TABLE), at, out="y")
    path = b.output("y").save(tmp_path / "m.onnx")
    sparsetvm.compile(path, tmp_path / "m.so", threads=1, log_dir=tmp_path)
    assert [note for note in sparsetvm.verify(tmp_path / "m.so", path, samples=1).notes if "'x'" in note]
    assert not sparsetvm.verify(library, library.with_name("m.onnx"), samples=1).notes


@pytest.mark.parametrize("far", [ROWS, -ROWS - 1])
def test_constant_index_beyond_the_table_is_refused_when_the_model_is_read(tmp_path, far):
    b = ModelBuilder()
    b.op("Gather", b.input("x", (ROWS, 3)), b.const(np.array([0, far])), name="picks", out="y")
    with pytest.raises(ModelError, match=f"'picks'.*index {far}"):
        sparsetvm.compile(b.output("y").save(tmp_path / "m.onnx"), tmp_path / "m.so", threads=1)
