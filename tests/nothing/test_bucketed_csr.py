"""K-blocked CSR: reading the arrays as the kernel does gives the matrix back."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparsetvm.formats.bucketed_csr import pack_bucketed_csr


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4]), st.integers(1, 6), st.integers(1, 40), st.integers(1, 50))
def test_arrays_hold_every_weight_once_at_its_place(seed: int, strip: int, strips: int, k: int, k_block: int) -> None:
    rng = np.random.default_rng(seed)
    m, groups = 2 * strip * strips, 2
    weight = (rng.standard_normal((m, k)) * (rng.random((m, k)) < rng.random())).astype(np.float32)
    taps = tuple(rng.permutation(1000)[:k] for _ in range(groups))
    csr = pack_bucketed_csr(weight, taps, m // groups, k_block, strip)
    found = np.zeros_like(weight)
    places = [{int(tap): column for column, tap in enumerate(own)} for own in taps]
    for block, (start, stop) in enumerate(zip(csr.blocks[:-1], csr.blocks[1:], strict=True)):
        rows_of_block = []
        for first_row, count, first_entry, length in csr.runs[start:stop]:
            for i in range(count):
                row = int(csr.rows[first_row + i])
                rows_of_block.append(row)
                for entry in range(first_entry + i * length, first_entry + (i + 1) * length):
                    column = places[row // (m // groups)][int(csr.offsets[entry])]
                    assert block * k_block <= column < (block + 1) * k_block
                    found[row : row + strip, column] += csr.values[entry * strip : (entry + 1) * strip]
        # The first block starts every sum, the last one finishes it.
        if block in (0, len(csr.blocks) - 2):
            assert sorted(rows_of_block) == list(range(0, m, strip))
    np.testing.assert_array_equal(found, weight)
