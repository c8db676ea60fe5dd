"""The target that records of a device were measured for."""

from __future__ import annotations

import pytest

from sparsetvm.core.target import DeviceFingerprint
from sparsetvm.report.story import target_of


@pytest.mark.parametrize(
    ("vendor", "family", "isa", "core"),
    [
        ("AuthenticAMD", 25, "avx512", "znver4"),
        ("AuthenticAMD", 26, "avx512", "znver5"),
        ("AuthenticAMD", 25, "avx2", "x86-64-v3"),  # Zen 3 has the same family
        ("GenuineIntel", 6, "avx512", "x86-64-v4"),
    ],
)
def test_core_of_foreign_records_is_told_by_the_family(vendor: str, family: int, isa: str, core: str) -> None:
    device = DeviceFingerprint("cpu", vendor, f"Elsewhere (family {family} model 255)", isa, 2, "")
    assert target_of(device, 3).mcpu == core
