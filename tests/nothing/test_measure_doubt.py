"""Which times are taken again, which are never believed, and what the conditions of a measurement are."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from log_samples import WORKLOAD

from sparsetvm.api import _collect
from sparsetvm.core.nvml import current_clocks
from sparsetvm.core.results import Event
from sparsetvm.core.target import Target
from sparsetvm.measure.conditions import read_conditions, read_gpu_conditions
from sparsetvm.measure.doubt import (
    Expectation,
    Limits,
    doubt,
    least_us,
    noise_warning,
    relative_difference,
    roofline_us,
    settle,
    spread,
)
from sparsetvm.report.progress import describe

TARGET = Target("cpu", "znver4", "avx512")


def test_calm_times_are_not_doubted() -> None:
    assert doubt((10.0, 10.1, 9.9), Limits()) == ""
    assert doubt((10.0,), Limits(surprising=9.0)) == ""
    assert spread((10.0,)) == 0.0


def test_one_interrupted_repeat_of_many_is_no_reason_for_doubt() -> None:
    assert doubt((10.0, 10.1, 10.2, 10.1, 90.0), Limits()) == ""


def test_times_that_vary_are_doubted_and_the_calmer_series_counts() -> None:
    wild, calm = (10.0, 13.0, 9.0, 14.0, 11.0), (12.0, 12.1, 12.2)
    assert "vary by" in doubt(wild, Limits())
    assert settle(wild, calm, Limits()) == calm
    assert settle(wild, (1.0, 50.0, 90.0), Limits()) == wild


def test_times_that_are_too_fast_are_doubted_and_luck_never_wins() -> None:
    limits = Limits(surprising=5.0)
    fast, usual = (4.0, 4.0, 4.0), (9.0, 9.5, 12.0)
    assert "far below the 5 us" in doubt(fast, limits)
    assert settle(fast, usual, limits) == usual
    assert settle(fast, (3.0, 3.0), limits) == fast


def test_a_leap_is_surprising_only_after_some_candidates() -> None:
    expected = Expectation(WORKLOAD, TARGET)
    machine = expected.limits()
    expected.note(1000.0)
    expected.note(900.0)
    assert expected.limits() == machine
    expected.note(950.0)
    assert expected.limits() == Limits(450.0, machine.impossible)


def test_nothing_is_possible_below_one_fma_per_non_zero_and_vector() -> None:
    # 512 x 256 at 10 %, 128 tokens: 13107 * 128 / 16 FMAs, two per cycle at 6 GHz.
    assert least_us(WORKLOAD, TARGET) == pytest.approx(13107 * 8 / 12e9 * 1e6)
    assert least_us(WORKLOAD, msgspec.structs.replace(TARGET, threads=4)) == least_us(WORKLOAD, TARGET) / 4
    assert least_us(WORKLOAD, TARGET) < roofline_us(WORKLOAD, TARGET)
    other = msgspec.structs.replace(TARGET, kind="cuda")
    assert Expectation(WORKLOAD, other).limits() == Limits(0.0, 0.0)


def test_noise_is_told_once_and_again_when_it_gets_worse() -> None:
    assert relative_difference((10.0, 11.0, 12.0), (10.0, 10.0, 10.0)) == pytest.approx(0.1)
    assert noise_warning(0.02) == ""
    assert "differs by 10%" in noise_warning(0.1)
    assert noise_warning(0.1, told=0.08) == ""
    assert noise_warning(0.2, told=0.08)


def test_conditions_come_from_cpufreq_or_else_from_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {1, 3})
    monkeypatch.setattr("os.getloadavg", lambda: (0.256, 1.0, 1.0))
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("".join(f"processor\t: {i}\ncpu MHz\t\t: {2000 + i}.5\ncache size : 1\n\n" for i in range(3)))
    virtual = read_conditions(tmp_path / "cpu", cpuinfo)
    assert (virtual.governor, virtual.mhz, virtual.load, virtual.noise) == ("", 2001.5, 0.26, None)
    policy = tmp_path / "cpu" / "cpu1" / "cpufreq"
    policy.mkdir(parents=True)
    (policy / "scaling_governor").write_text("performance\n")
    (policy / "scaling_cur_freq").write_text("3400000\n")
    real = read_conditions(tmp_path / "cpu", cpuinfo)
    assert (real.governor, real.mhz) == ("performance", 3400.0)
    assert read_conditions(tmp_path / "none", tmp_path / "none").mhz is None


def test_conditions_of_a_gpu_are_its_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.256, 1.0, 1.0))
    monkeypatch.setattr("sparsetvm.measure.conditions.current_clocks", {0: (1980, 3201), 1: None}.get)
    known, unknown = read_gpu_conditions(0), read_gpu_conditions(1)
    assert (known.mhz, known.memory_mhz, known.load, known.governor) == (1980, 3201, 0.26, "")
    assert (unknown.mhz, unknown.memory_mhz) == (None, None)


def test_clocks_are_unknown_where_the_management_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsetvm.core.nvml.LIBRARY", "libnone.so.9")
    assert current_clocks(63) is None


def test_report_of_a_tune_collects_warnings_that_progress_also_shows() -> None:
    warnings: list[str] = []
    shown: list[str] = []
    tell = _collect(warnings, lambda event: shown.append(describe(event)))
    tell(Event(kind="note", task="fc", message="other"))
    tell(Event(kind="warning", task="fc", message="noisy machine", data={"noise": 0.125}))
    assert warnings == ["fc: noisy machine"]
    assert shown == ["[note] fc: other", "[warning] fc: noisy machine"]
