"""How threads share a layer: by tiles where there are many, by rows where there is one, by both in between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparsetvm.schedules.x86.geometry import tap_geometry
from sparsetvm.schedules.x86.shares import default_row_parts, row_parts, shares_of

from sparsetvm.core.layout import Tiled
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Epilogue, Workload


def product(m: int, k: int, tokens: int, threads: int) -> tuple[Workload, Target]:
    pattern = PatternSummary("unstructured", (1, 1), 0.1, 1.0, 0, "0")
    lin, lout = Tiled(tokens, k, 16), Tiled(tokens, m, 16)
    workload = Workload("matmul", m, k, tokens, lin, lout, Epilogue(), pattern, threads=threads)
    return workload, Target("cpu", "sapphirerapids", "avx512", threads)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 3000), st.integers(2, 48))
def test_a_default_is_one_to_choose_and_keeps_to_its_threads(m: int, k: int, tokens: int, threads: int) -> None:
    workload, target = product(m, k, tokens, threads)
    rows = default_row_parts(workload, target)
    assert rows in row_parts(threads)
    assert rows <= m
    assert 1 <= shares_of(rows, tap_geometry(workload), threads).workers <= threads


@pytest.mark.parametrize("threads", [2, 4, 16])
def test_many_tiles_are_shared_and_rows_are_not(threads: int) -> None:
    assert default_row_parts(*product(64, 64, 12544, threads)) == 1


@pytest.mark.parametrize("threads", [2, 4, 16])
def test_rows_are_shared_where_there_is_one_tile(threads: int) -> None:
    assert default_row_parts(*product(1024, 1024, 16, threads)) == threads


def test_sixteen_threads_share_rows_and_tiles_of_a_layer_with_a_few_tiles() -> None:
    workload, target = product(1024, 256, 196, 16)
    shares = shares_of(default_row_parts(workload, target), tap_geometry(workload), 16)
    assert shares.rows > 1
    assert shares.tiles > 1


def test_parts_to_choose_from_end_with_all_threads() -> None:
    assert [row_parts(threads) for threads in (2, 6, 16)] == [(1, 2), (1, 2, 4, 6), (1, 2, 4, 8, 16)]
