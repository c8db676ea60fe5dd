"""The benchmark's cases: which layers, with which patterns, from which files."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from benchlib.case import Case, even_sample
from benchlib.conv_suite import convolutions
from benchlib.pattern_file import read_columns, read_patterns
from benchlib.suites import file_cases, find_cases, random_weight, uneven_rows
from models import ModelBuilder

from sparsetvm.core.layout import Plain, Tiled
from sparsetvm.core.target import Target, parse_target
from sparsetvm.errors import UsageError

TARGET = Target("cpu", "skylake-avx512", "avx512")


def write_patterns(path, matrices, raw=False, **arrays):
    """A file with boolean matrices; `arrays` replace or add keys."""
    stored = {}
    for name, mask in matrices.items():
        rows, columns = np.nonzero(mask)
        before = np.where(np.diff(rows, prepend=-1) == 0, np.roll(columns, 1), 0)
        stored[f"{name}|s"] = np.array([*mask.shape, len(rows)], np.int32)
        stored[f"{name}|n"] = mask.sum(axis=1).astype(np.uint16)
        stored[f"{name}|d"] = (columns if raw else columns - before).astype(np.uint16)
        if raw:
            stored[f"{name}|raw"] = np.zeros(0, np.int8)
    np.savez(path, **{**stored, **arrays})
    return path


def mask_with_empty_rows(shape=(7, 40)):
    mask = np.random.default_rng(0).random(shape) < 0.2
    mask[[0, 3, 6]] = False
    return mask


@pytest.mark.parametrize("raw", [False, True])
def test_pattern_file_gives_back_positions_and_empty_rows(tmp_path, raw):
    mask = mask_with_empty_rows()
    path = write_patterns(tmp_path / "p.npz", {"a": mask, "b": ~mask}, raw)
    first, second = read_patterns(path)
    np.testing.assert_array_equal(first.weight() != 0, mask)
    np.testing.assert_array_equal(second.weight(seed=3) != 0, ~mask)
    assert first.sparsity == pytest.approx(1 - mask.mean())


BAD = {
    "objects": {"a|d": np.array([{}], object)},
    "floats": {"a|d": np.ones(mask_with_empty_rows().sum())},
    "a column too far": {"a|d": np.full(mask_with_empty_rows().sum(), 39, np.int32)},
    "a column twice": {"a|d": np.zeros(mask_with_empty_rows().sum(), np.int32)},
    "counts that do not add up": {"a|n": np.ones(7, np.int32)},
    "negative counts": {"a|n": np.array([-1, 0, 0, 0, 0, 0, 1], np.int32), "a|s": np.array([7, 40, 0], np.int32)},
    "too few rows": {"a|n": np.ones(3, np.int32)},
    "a huge matrix": {"a|s": np.array([1 << 30, 1 << 30, 1], np.int64)},
    "no sizes": {"a|s": np.zeros(2, np.int32)},
}


@pytest.mark.parametrize("arrays", BAD.values(), ids=BAD)
def test_pattern_file_with_something_else_is_rejected(tmp_path, arrays):
    path = write_patterns(tmp_path / "p.npz", {"a": mask_with_empty_rows()}, **arrays)
    with pytest.raises(UsageError, match="matrix 'a'"):
        list(read_patterns(path))


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_pattern_file_that_is_no_archive_is_rejected(tmp_path, content):
    path = tmp_path / "p.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no file of patterns"):
        list(read_patterns(path))


def test_columns_come_from_text_files_of_pairs_only(tmp_path):
    (tmp_path / "sizes.txt").write_text("a,49\nb_1,3136\n")
    (tmp_path / "notes.txt").write_text("a, b: see there\n")
    assert read_columns(tmp_path) == {"a": 49, "b_1": 3136}


def test_file_cases_use_the_columns_of_the_network_and_have_a_random_twin(tmp_path):
    (tmp_path / "sizes.txt").write_text("a,49\n")
    mask = mask_with_empty_rows()
    cases = file_cases("dlmc", write_patterns(tmp_path / "net.npz", {"a": mask, "b": mask}))
    assert [(case.name, case.n, case.group) for case in cases] == [("a", 49, "net"), ("b", 128, "net")]
    task, twin = (make(TARGET) for make in (cases[0].task, cases[0].twin))
    assert (task.workload.m, task.workload.k, task.workload.n) == (7, 40, 49)
    assert task.workload.nnz == twin.workload.nnz == mask.sum()
    assert task.workload.pattern.digest != twin.workload.pattern.digest


def test_anchors_are_chosen_by_columns_and_sparsity():
    assert len(find_cases("anchors", TARGET)) == 65
    chosen = find_cases("anchors", TARGET, columns=[1, 128], sparsities=[0.95])
    assert {(case.n, case.group) for case in chosen} == {
        (1, "n=1,s=0.95"), (128, "n=128,s=0.95"), (128, "n=128,s=0.95,4x1"),
    }  # fmt: skip
    assert len(chosen) == 15


def test_cases_are_chosen_by_parts_of_their_names():
    gpu = parse_target("cuda,sm_90")
    names = {case.name.split(" ", 3)[3] for case in find_cases("structured", gpu, parts=["32x32", "2:4"])}
    assert names == {"32x32 fp16", "2:4 fp16"}


def test_anchor_is_warm_in_the_layout_between_two_layers_with_the_exact_density():
    one, many = (find_cases("anchors", TARGET, columns=[n], limit=1)[0].task(TARGET).workload for n in (1, 784))
    assert isinstance(one.layout_in, Plain)
    assert isinstance(many.layout_in, Tiled)
    assert not many.cold
    assert one.pattern.sparsity == pytest.approx(0.9, abs=1e-4)


def test_patterns_are_of_the_kind_that_they_are_called():
    found = {case.group: case.task(TARGET).workload.pattern.describe() for case in find_cases("patterns", TARGET)}
    assert found["16x1,s=0.95"] == "block 16x1"
    assert found["1x4,s=0.90"] == "block 1x4"
    assert found["2:4"] == "2:4"
    assert found["uneven rows,s=0.95"] == "unstructured"


def test_patterns_for_a_gpu_have_blocks_for_tensor_cores_in_addition():
    cpu, gpu = (find_cases("patterns", target) for target in (TARGET, parse_target("cuda,sm_90")))
    assert [case.name for case in gpu[:16]] == [case.name for case in cpu if case.name.startswith("1024x1024")]
    assert {(case.n, case.sparsity) for case in gpu[16:]} == {(n, s) for n in (128, 1024) for s in (0.9, 0.95)}
    found = {case.group: case.task(parse_target("cuda,sm_90")).workload for case in gpu[16:]}
    assert found["16x16,n=128,s=0.95"].pattern.describe() == "block 16x16"
    assert found["32x32,n=1024,s=0.90"].pattern.describe() == "block 32x32"
    assert len(found) == 8


def test_uneven_rows_range_from_empty_to_full_at_the_wanted_density():
    weight = uneven_rows((512, 256), 0.95, 0)
    lengths = np.count_nonzero(weight, axis=1)
    assert lengths.min() == 0
    assert lengths.max() > 10 * lengths.mean()
    assert np.count_nonzero(weight) / weight.size == pytest.approx(0.05, rel=0.1)


def test_sparserts_layers_take_the_weights_of_a_model_where_it_has_their_shape(tmp_path):
    builder = ModelBuilder()
    x = builder.input("x", (1, 32, 4, 4))
    model = builder.output(builder.conv(x, 32, 64, 1, pad=0, sparsity=0.9)).save(tmp_path / "net.onnx")
    weight = next(onnx.numpy_helper.to_array(t) for t in builder.initializers if len(t.dims) == 4)
    cases = [case for case in find_cases("sparsert", TARGET, model=model) if case.name.startswith("64x32")]
    assert [case.n for case in cases] == [12544]
    np.testing.assert_array_equal(cases[0].task(TARGET).weight, weight.reshape(64, 32))
    assert len(find_cases("sparsert", TARGET)) == len(find_cases("sparsert", TARGET, model=model)) + 1


def test_random_weight_is_the_same_for_one_seed():
    first, again, other = (random_weight((8, 16), 0.5, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_convolutions_are_the_distinct_pruned_ones_of_the_network():
    cases = convolutions(TARGET, ["mobilenet_v1"])
    names = [case.name for case in cases]
    assert "conv2d 1x1 512->1024 7x7 s=0.90" in names
    assert len(set(names)) == len(names) == 18
    assert {case.group for case in cases} == {"mobilenet_v1 1x1,s=0.90", "mobilenet_v1 1x1,s=0.95"}
    workload = cases[0].task(TARGET).workload
    assert (workload.epilogue.activation, workload.cold) == ("clip", False)


def test_sample_is_even_and_holds_both_ends():
    cases = [Case("s", str(i), "g", 1, 0.9, lambda target: None) for i in range(10)]
    assert [case.name for case in even_sample(cases, 4)] == ["0", "3", "6", "9"]
    assert even_sample(cases, 1) == cases[:1]
    assert even_sample(cases, None) == even_sample(cases, 99) == cases


def test_unknown_suite_and_missing_patterns_say_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'anchors'"):
        find_cases("anchor", TARGET)
    with pytest.raises(UsageError, match="--patterns DIR"):
        find_cases("dlmc", TARGET, patterns=tmp_path)
