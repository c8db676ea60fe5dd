"""The lookup format holds exactly the matrix, however its rows are spread, and pads little."""

from __future__ import annotations

import numpy as np
import pytest

from sparsetvm.formats.lookup import BLOCK, LANES, LookupFormat, pack_lookup

WALKS = [(2, 1), (2, 2), (4, 1), (4, 2)]


def random_weight(m: int, k: int, density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((m, k)).astype(np.float32)
    weight[rng.random((m, k)) >= density] = 0
    return weight


def unpacked(fmt: LookupFormat, m: int, k: int) -> np.ndarray:
    """The matrix as the kernel reads it; counts every stored value once per row."""
    values = fmt.values.reshape(-1, fmt.group, LANES)
    ids = fmt.ids.reshape(-1, LANES)
    words = fmt.walk.reshape(-1, fmt.words)
    found = np.zeros((m, -(-k // BLOCK) * BLOCK))
    for s in range(fmt.first.size - 1):
        rows = fmt.order[s * LANES : (s + 1) * LANES]
        real = [lane for lane in range(LANES) if s * LANES + lane < m]
        window = [0] * (fmt.window - fmt.fresh)
        for group in range(fmt.first[s], fmt.first[s + 1]):
            for step in range(fmt.group):
                for load in range(step * fmt.fresh, (step + 1) * fmt.fresh):
                    word, field = divmod(load, fmt.per_word)
                    window.append(int(words[group, word]) >> field * fmt.block_bits & (1 << fmt.block_bits) - 1)
                field = ids[group] >> step * fmt.id_bits & (1 << fmt.id_bits) - 1
                at = field if fmt.window == 2 else field >> 1 | (field & 1) << 5
                for lane in real:
                    position, column = divmod(int(at[lane]), BLOCK)
                    found[rows[lane], window[position] * BLOCK + column] += values[group, step, lane]
                window = window[fmt.fresh :]
    assert not found[:, k:].any()
    return found[:, :k]


@pytest.mark.parametrize(("window", "fresh"), WALKS)
@pytest.mark.parametrize("sort_rows", [False, True])
@pytest.mark.parametrize(
    ("m", "k", "density"), [(37, 75, 0.2), (1, 40, 0.5), (16, 7, 0.9), (40, 200, 0.02), (3, 1, 1.0)]
)
def test_lookup_format_holds_every_non_zero_once(m, k, density, sort_rows, window, fresh):
    weight = random_weight(m, k, density)
    weight[m // 2] = 0
    weight[0, -1] = 2.0
    fmt = pack_lookup(weight, 1, window=window, fresh=fresh, sort_rows=sort_rows)
    np.testing.assert_array_equal(unpacked(fmt, m, k), weight)


@pytest.mark.parametrize(("window", "fresh"), WALKS)
def test_lookup_format_of_zeros_has_slices_without_steps(window, fresh):
    fmt = pack_lookup(np.zeros((20, 40), np.float32), 2, window=window, fresh=fresh, sort_rows=False)
    assert not fmt.first.any()
    assert not fmt.values.any()
    assert all(a.size for a in (fmt.values, fmt.ids, fmt.walk, fmt.bounds, fmt.order))


def test_lookup_format_names_blocks_beyond_a_thousand():
    weight = np.zeros((2, BLOCK * 1500), np.float32)
    weight[0, [0, 20000, -1]] = weight[1, [5, 23000]] = 1.0
    fmt = pack_lookup(weight, 1, window=4, fresh=1, sort_rows=False)
    np.testing.assert_array_equal(unpacked(fmt, *weight.shape), weight)


@pytest.mark.parametrize(
    ("density", "window", "fresh", "most"), [(0.1, 4, 1, 1.3), (0.1, 2, 1, 1.6), (0.05, 4, 1, 1.5), (0.02, 4, 2, 2.0)]
)
def test_lookup_format_pads_random_patterns_little(density, window, fresh, most):
    weight = random_weight(128, 1024, density)
    assert pack_lookup(weight, 1, window=window, fresh=fresh, sort_rows=False).padding < most


def test_lookup_format_pads_uneven_rows_little_when_sorted():
    rng = np.random.default_rng(1)
    weight = random_weight(256, 512, 1.0)
    weight[rng.random((256, 512)) >= rng.permutation(np.linspace(0.0, 0.2, 256))[:, None]] = 0
    in_order, by_length = (pack_lookup(weight, 1, window=4, fresh=1, sort_rows=s).padding for s in (False, True))
    assert by_length < 1.35 < in_order


def test_lookup_format_deals_slices_by_steps():
    weight = random_weight(16 * 40, 256, 0.02)
    weight[:64] = random_weight(64, 256, 0.5)
    fmt = pack_lookup(weight, 3, window=4, fresh=1, sort_rows=False)
    work = fmt.first[fmt.bounds]
    assert (fmt.bounds[0], fmt.bounds[-1]) == (0, 40)
    assert np.ptp(np.diff(work)) <= np.diff(fmt.first).max()
