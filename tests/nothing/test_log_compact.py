"""Compaction changes the size of a log and no decision."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from log_samples import CONFIG, DEVICE, OTHER_CONFIG, OTHER_DEVICE, TOOLCHAIN, WORKLOAD, record, workload

from sparsetvm.core.config import Config
from sparsetvm.core.record import Record
from sparsetvm.log import journal
from sparsetvm.log.compact import compact
from sparsetvm.log.line import encode_line
from sparsetvm.log.lookup import RecordIndex

TASKS = (WORKLOAD, workload(digest="other"), workload(digest="third", density=0.3))


@st.composite
def samples(draw: st.DrawFn) -> Record:
    """Few tasks, configs and times, so that records meet."""
    good = draw(st.booleans())
    return record(
        draw(st.sampled_from([10.0, 20.0, 30.0])) if good else None,
        workload=draw(st.sampled_from(TASKS)),
        config=draw(st.sampled_from([CONFIG, OTHER_CONFIG])),
        device=draw(st.sampled_from([DEVICE, OTHER_DEVICE])),
        stage=draw(st.sampled_from(["search", "search", "final", "check"])),
        template_version=draw(st.integers(1, 2)),
        space=draw(st.sampled_from(["old", "new"])),
        run=draw(st.sampled_from(["", "a", "b"])),
        time=f"2026-01-{draw(st.integers(1, 9)):02}T00:00:00Z",
    )


def valid(config: Config, version: int, space: str) -> bool:
    return version == 2 and space in ("", "new")


def decisions(path: Path) -> list[object]:
    index = RecordIndex.open(None, [path], shipped=False)
    found: list[object] = []
    for task in TASKS:
        best = index.best(task, DEVICE, valid, toolchain=TOOLCHAIN)
        found.append((best.kind, best.record and (best.record.best_us, best.record.stage)))
        found.append(index.failed_configs(task, DEVICE, valid, toolchain=TOOLCHAIN))
        found.append(set(index.seeds(task, 9, DEVICE, valid)))
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(samples(), max_size=14))
def test_compact_changes_no_decision_and_a_second_time_nothing(tmp_path: Path, written: list[Record]) -> None:
    path = tmp_path / "cpu.jsonl"
    path.write_bytes(b"".join(map(encode_line, written)))
    before = decisions(path)
    (report,) = compact(path)
    assert decisions(path) == before
    assert report.after <= report.before == len(written)
    once = path.read_bytes()
    (again,) = compact(path)
    assert (again.before, again.after, again.backups) == (report.after, report.after, ())
    assert path.read_bytes() == once


def test_compact_keeps_the_last_and_the_fastest_search_timing_and_every_final(tmp_path: Path) -> None:
    path = tmp_path / "cpu.jsonl"
    searched = [record(us, time=f"2026-01-0{day}T00:00:00Z") for day, us in enumerate((30.0, 10.0, 25.0, 20.0), 1)]
    finals = [record(us, stage="final", run=str(us)) for us in (12.0, 13.0)]
    path.write_bytes(b"junk\n" + b"".join(map(encode_line, [*searched, *finals, finals[0]])))
    old = path.read_bytes()
    (report,) = compact(path)
    assert journal.read_records(path).records == [searched[1], searched[3], *finals]
    assert (report.before, report.after, report.bad) == (7, 4, 1)
    assert report.backups == (tmp_path / "cpu.jsonl.bak",)
    assert report.backups[0].read_bytes() == old


def test_compact_leaves_a_log_alone_that_has_nothing_to_lose(tmp_path: Path) -> None:
    path = tmp_path / "cpu.jsonl"
    journal.append(path, record(1.0), record(2.0, config=OTHER_CONFIG))
    assert compact(tmp_path)[0].backups == ()
    assert not list(tmp_path.glob("*.bak"))
