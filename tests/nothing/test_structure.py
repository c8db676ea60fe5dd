from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structure_cases import WAYS, Case, make, n_of_m, outside, random_mask, wrong

from sparsetvm.analysis.layers import beyond_pattern
from sparsetvm.analysis.patterns import summarize
from sparsetvm.analysis.structure import Structure, find_structure

BLOCKS = [(4, 1), (1, 4), (2, 1), (1, 2), (4, 4), (2, 2), (1, 9), (8, 2), (16, 1), (1, 16), (3, 3)]
SHAPES = [(256, 256), (512, 384), (130, 300), (1024, 128)]


def tells(case: Case) -> bool:
    """Does the weight hold enough blocks? Lines of few blocks are equal by chance: no permutation can be told."""
    blocks = case.shape[1] // case.block[1], case.shape[0] // case.block[0]  # crossing: of a row, of a column
    hidden = [case.way in ("rows", "both") and case.block[0] > 1, case.way in ("columns", "both") and case.block[1] > 1]
    return all(
        crossing >= 24 and crossing * (1.0 - case.zeros) >= 3
        for crossing, hides in zip(blocks, hidden, strict=True)
        if hides
    )


def cases() -> list[Case]:
    every = itertools.product(BLOCKS, SHAPES, (0.8, 0.9, 0.95, 0.98), WAYS, (0.0, 0.005, 0.02))
    made = [Case(shape, b, z, way, strays, seed=seed) for seed, (b, shape, z, way, strays) in enumerate(every)]
    # A number without a common factor with the lengths above, so that all values of each property take part.
    return [case for case in made[::7] if tells(case)]


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_are_found_shifted_permuted_and_with_strays(block: tuple[int, int]) -> None:
    chosen = [case for case in cases() if case.block == block]
    assert len(chosen) >= 15
    verdicts = []
    for case in chosen:
        weight, strays = make(case)
        if why := wrong(case, weight, strays, find_structure(weight)):
            verdicts.append((case, why))
    assert verdicts == []


def test_at_least_200_block_matrices_are_tried() -> None:
    assert len(cases()) >= 200


@pytest.mark.parametrize("block", [(4, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("way", WAYS)
def test_dead_rows_do_not_hide_blocks(block: tuple[int, int], way: str) -> None:
    case = Case((256, 320), block, 0.8, way, dead=0.1, seed=3)
    weight, strays = make(case)
    found = find_structure(weight)
    assert wrong(case, weight, strays, found) == ""
    assert found.dead_rows >= 25


@pytest.mark.parametrize("way", WAYS)
def test_dead_rows_that_hold_strays_do_not_hide_blocks(way: str) -> None:
    case = Case((384, 320), (4, 4), 0.8, way, strays=0.02, dead=0.1, seed=len(way))
    weight, strays = make(case)
    assert wrong(case, weight, strays, find_structure(weight)) == ""


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (4, 8), (2, 8), (1, 8), (3, 16)])
def test_n_of_m_is_found_along_both_axes(n: int, m: int) -> None:
    weight = n_of_m(np.random.default_rng(n * m), (128, 192), n, m)
    expected = (2, 4) if (n, m) == (2, 4) else (n, m)
    for given_weight, axis in ((weight, "input"), (weight.T.copy(), "output")):
        found = find_structure(given_weight)
        assert (found.kind, found.n_m, found.axis) == ("n:m", expected, axis)
        assert found.explain() == f"{n}:{m} along the {axis} axis"


def test_n_of_m_is_found_beside_dead_rows() -> None:
    weight = n_of_m(np.random.default_rng(1), (128, 192), 2, 4)
    weight[np.random.default_rng(2).permutation(128)[:13]] = 0
    assert find_structure(weight).n_m == (2, 4)


def test_whole_rows_and_columns_are_found_with_strays() -> None:
    rng = np.random.default_rng(3)
    weight = np.ones((128, 256), np.float32)
    weight[rng.permutation(128)[:100]] = 0
    weight[random_mask(rng, weight.shape, 0.002) > 0] = 1
    found = find_structure(weight)
    assert found.kind == "rows"
    assert 0 < found.strays < 66
    assert find_structure(weight.T.copy()).kind == "columns"


@pytest.mark.parametrize("zeros", [0.0, 0.1, 0.199])
def test_few_zeros_are_dense(zeros: float) -> None:
    assert find_structure(random_mask(np.random.default_rng(4), (100, 100), 1 - zeros)).kind == "dense"


def test_weight_just_over_a_fifth_of_zeros_is_looked_at() -> None:
    weight, strays = make(Case((128, 128), (4, 4), 0.22))
    assert np.count_nonzero(weight == 0) >= 0.2 * weight.size
    assert find_structure(weight).block == (4, 4)
    assert strays == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (3, 5), (4, 4)])
def test_matrices_too_small_to_tell_have_no_blocks(shape: tuple[int, int]) -> None:
    for density in (0.3, 0.5, 0.7):
        found = find_structure(random_mask(np.random.default_rng(5), shape, density))
        assert found.kind in ("unstructured", "dense", "rows")  # rows: all dead
        assert found.kind != "rows" or found.nnz == 0


def test_exactly_one_block_is_not_called_a_structure_of_blocks() -> None:
    weight = np.zeros((32, 32), np.float32)
    weight[16:, 16:] = 1
    assert find_structure(weight).kind in ("rows", "columns")  # dead ones beside a full matrix


def test_accidental_small_blocks_are_no_structure() -> None:
    weight = random_mask(np.random.default_rng(6), (128, 128), 0.1)
    for start in range(0, 128, 16):
        weight[start : start + 4, start : start + 4] = 1
    assert find_structure(weight).kind == "unstructured"


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_too_many_strays_are_no_structure(share: float) -> None:
    assert find_structure(make(Case((256, 256), (4, 1), 0.9, strays=share))[0]).kind == "unstructured"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(1, 100), (2, 64), (6, 25), (16, 9), (64, 27), (32, 512), (300, 64), (2000, 8), (8, 2000)]),
    st.floats(0.0005, 0.8),
    st.sampled_from(["even", "uneven"]),
)
def test_random_masks_are_never_given_a_structure(seed: int, shape: tuple[int, int], density: float, how: str) -> None:
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, shape, density)
    if how == "uneven":  # some rows and columns hold far more than others
        likely = np.outer(rng.lognormal(size=shape[0]), rng.lognormal(size=shape[1]))
        mask = (rng.random(shape) < density * likely).astype(np.float32)
    if mask.any():
        assert find_structure(mask).kind in ("unstructured", "dense")


@pytest.mark.parametrize("density", [0.5, 0.25, 0.1, 0.02, 0.001])
@pytest.mark.parametrize("shape", [(512, 512), (4096, 16), (16, 4096)])
def test_large_random_masks_are_unstructured(shape: tuple[int, int], density: float) -> None:
    assert find_structure(random_mask(np.random.default_rng(9), shape, density)).kind == "unstructured"


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(4, 1), (1, 4), (2, 2), (4, 4)]), st.sampled_from([0.8, 0.9]))
def test_permuting_a_block_matrix_keeps_its_block_size(seed: int, block: tuple[int, int], zeros: float) -> None:
    weight, _ = make(Case((256, 256), block, zeros, seed=seed))
    rng = np.random.default_rng(seed)
    permuted = weight[rng.permutation(256)][:, rng.permutation(256)]
    found = find_structure(permuted)
    assert found.block == find_structure(weight).block == block
    assert outside(permuted, found) == (0, 0)
    for order in (found.row_permutation, found.column_permutation):
        assert order is None or sorted(order) == list(range(256))


def test_explain_names_what_hides_the_blocks() -> None:
    order = np.arange(4)
    assert Structure("block", 8, 0, 0, (4, 1), row_permutation=order).explain() == (
        "hidden 4x1 blocks: rows are permuted"
    )
    assert Structure("mixed", 1000, 3, 0, (2, 4), offset=(1, 0), strays=13).explain() == (
        "2x4 blocks at offset (1, 0), plus 1.3 % strays, 3 empty rows"
    )


def test_inspect_speaks_of_structure_only_where_the_pattern_says_less() -> None:
    hidden, _ = make(Case((256, 256), (4, 1), 0.8, "rows"))
    shown, _ = make(Case((256, 256), (4, 1), 0.9))
    plain = random_mask(np.random.default_rng(10), (256, 256), 0.1)
    said = [beyond_pattern(summarize(weight), weight) for weight in (hidden, shown, plain)]
    assert said == ["hidden 4x1 blocks: rows are permuted", "", ""]
