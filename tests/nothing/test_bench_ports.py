"""The variants of code that scripts/bench_ports.py times."""

from __future__ import annotations

from bench_ports import VARIANTS, middle_piece


def test_variants_leave_out_what_they_say_and_keep_every_fma() -> None:
    rows, groups = 8, 3
    code, fmas = middle_piece(rows, 32, groups, 0.5)
    variants = {name: change(code) for name, change in VARIANTS.items()}
    assert 0 < fmas < rows * groups * 32
    assert all(sum(line.startswith("vfmadd") for line in lines) == fmas for lines in variants.values())
    assert variants["and sums: all"] == code
    sums = len(code) - len(variants["and stores"])
    stores = len(variants["and stores"]) - len(variants["with weights and X"])
    assert sums == stores == rows * groups
    loads_of_x = len(variants["with X"]) - len(variants["FMAs alone"])
    assert 0 < loads_of_x <= 32 * groups
    weights = {name: sum("(%rdx)" in line for line in lines) for name, lines in variants.items()}
    assert weights["FMAs alone"] == weights["with X"] == 0
    assert weights["with weights"] == weights["and sums: all"] == fmas
