from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsetvm.analysis.group_counts import may_hold
from sparsetvm.analysis.patterns import summarize
from sparsetvm.core.pattern import pattern_digest

BLOCKS = [(1, 2), (2, 1), (1, 4), (4, 1), (8, 1), (16, 1), (4, 4), (2, 8), (16, 4), (32, 32), (64, 64)]
GROUPS = [(1, 2), (1, 4), (2, 4), (3, 4), (2, 8), (4, 8), (3, 8), (8, 16)]


def random_mask(rng: np.random.Generator, shape: tuple[int, int], density: float) -> np.ndarray:
    """Exactly that share of ones at random places."""
    flat = np.zeros(shape[0] * shape[1], np.float32)
    flat[: round(density * flat.size)] = 1.0
    return rng.permutation(flat).reshape(shape)


def blocked(rng: np.random.Generator, shape: tuple[int, int], block: tuple[int, int], density: float) -> np.ndarray:
    coarse = random_mask(rng, (-(-shape[0] // block[0]), -(-shape[1] // block[1])), density)
    mask = np.kron(coarse, np.ones(block, np.float32))[: shape[0], : shape[1]]
    return mask * rng.choice([-1.5, 0.5, 2.0], shape).astype(np.float32)


def n_of_m(rng: np.random.Generator, shape: tuple[int, int], n: int, m: int) -> np.ndarray:
    order = rng.random((shape[0], shape[1] // m, m)).argsort(axis=2).argsort(axis=2)
    return (order < n).reshape(shape).astype(np.float32)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("density", [0.1, 0.5, 0.75])
def test_summarize_finds_blocks(block: tuple[int, int], density: float) -> None:
    found = summarize(blocked(np.random.default_rng(0), (512, 768), block, density))
    assert (found.kind, found.block) == ("block", block)


def test_summarize_finds_blocks_cut_off_at_the_edge() -> None:
    found = summarize(blocked(np.random.default_rng(1), (130, 147), (4, 4), 0.3))
    assert (found.kind, found.block) == ("block", (4, 4))


def test_summarize_forgives_accidental_zeros_in_blocks() -> None:
    rng = np.random.default_rng(2)
    weight = blocked(rng, (256, 256), (4, 1), 0.3) * (rng.random((256, 256)) > 0.01)
    assert summarize(weight).describe() == "block 4x1"


def test_summarize_does_not_claim_blocks_when_many_are_broken() -> None:
    rng = np.random.default_rng(3)
    weight = blocked(rng, (256, 256), (4, 1), 0.3) * (rng.random((256, 256)) > 0.2)
    assert summarize(weight).kind == "unstructured"


@pytest.mark.parametrize(("n", "m"), GROUPS)
def test_summarize_finds_n_of_m(n: int, m: int) -> None:
    found = summarize(n_of_m(np.random.default_rng(4), (128, 256), n, m))
    assert (found.kind, found.block) == ("n:m", (n, m))
    assert found.density == n / m


def test_summarize_does_not_claim_n_of_m_when_a_group_holds_more() -> None:
    weight = n_of_m(np.random.default_rng(5), (128, 256), 2, 4)
    weight[7, 8:12] = 1
    assert summarize(weight).kind == "unstructured"


def test_summarize_does_not_claim_n_of_m_when_k_is_no_multiple_of_m() -> None:
    weight = n_of_m(np.random.default_rng(5), (128, 256), 2, 4)[:, :254]
    assert summarize(weight).kind == "unstructured"


def test_summarize_finds_whole_rows_and_columns() -> None:
    weight = np.ones((64, 576), np.float32)
    weight[::3] = 0
    assert summarize(weight).kind == "rows"
    assert summarize(weight).empty_rows == 22
    weight = np.ones((64, 576), np.float32)
    weight[:, 90:270] = 0
    assert summarize(weight).describe() == "columns"


def test_summarize_names_the_axis_that_explains_more() -> None:
    weight = np.ones((64, 64), np.float32)
    weight[:40], weight[:, 61:] = 0, 0
    assert summarize(weight).kind == "rows"
    assert summarize(weight.T.copy()).kind == "columns"


def test_rows_with_unstructured_rest_are_unstructured() -> None:
    weight = random_mask(np.random.default_rng(6), (128, 128), 0.5)
    weight[:64] = 0
    assert summarize(weight).kind == "unstructured"


@pytest.mark.parametrize("density", [1.0, 0.95, 0.81])
def test_few_zeros_are_dense(density: float) -> None:
    assert summarize(random_mask(np.random.default_rng(7), (64, 64), density)).kind == "dense"


def test_all_zero_weight_has_a_summary() -> None:
    found = summarize(np.zeros((8, 16), np.float32))
    assert (found.kind, found.density, found.row_imbalance, found.empty_rows) == ("rows", 0.0, 0.0, 8)


def test_summarize_counts() -> None:
    weight = np.array([[1, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]], np.float32)
    found = summarize(weight)
    assert (found.density, found.empty_rows) == (3 / 16, 2)
    assert found.row_imbalance == pytest.approx(2 / 0.75)
    assert found.digest == pattern_digest(weight)


def test_values_do_not_matter_positions_do() -> None:
    rng = np.random.default_rng(8)
    mask = random_mask(rng, (64, 64), 0.2)
    assert summarize(mask) == summarize(mask * -3.25)
    assert summarize(mask).digest != summarize(np.roll(mask, 1, axis=1)).digest


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(
        [(1, 100), (2, 64), (6, 25), (10, 84), (16, 9), (64, 27), (32, 512), (100, 1), (128, 128), (300, 64)]
    ),
    st.floats(0.0, 0.8),
)
def test_random_masks_are_never_given_a_structure(seed: int, shape: tuple[int, int], density: float) -> None:
    mask = random_mask(np.random.default_rng(seed), shape, density)
    if mask.any():
        assert summarize(mask).kind in ("unstructured", "dense")


@pytest.mark.parametrize("density", [0.5, 0.25, 0.1, 0.02, 0.001])
def test_large_random_mask_of_the_density_of_a_structure_is_unstructured(density: float) -> None:
    assert summarize(random_mask(np.random.default_rng(9), (512, 512), density)).kind == "unstructured"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([*BLOCKS, (1, 1)]), st.floats(0, 1), st.integers(0, 99))
def test_summary_of_any_matrix_is_consistent(m: int, k: int, block: tuple[int, int], density: float, seed: int) -> None:
    weight = blocked(np.random.default_rng(seed), (m, k), block, density)
    found = summarize(weight)
    assert found.density == np.count_nonzero(weight) / weight.size
    assert found.empty_rows == np.count_nonzero(~weight.any(axis=1))
    assert found.row_imbalance >= (1.0 if weight.any() else 0.0)
    assert found.block[0] <= m
    assert found.block[1] <= k or found.kind == "n:m"


@pytest.mark.parametrize("broken", [0.0, 0.03, 0.2])
def test_quick_look_at_groups_turns_nothing_away_that_holds(broken):
    rng = np.random.default_rng(0)
    counts = np.where(rng.random(800) < broken, 1, 2).astype(np.uint8)
    for sample in (counts[::8], np.sort(counts)[:100]):
        assert may_hold(sample, counts.size, 0.95) or np.mean(counts == 2) < 0.95
    assert not may_hold(rng.binomial(4, 0.1, 100).astype(np.uint8), counts.size, 0.95)
