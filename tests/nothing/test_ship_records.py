"""scripts/ship_records.py ships what the templates as they are now can use."""

from __future__ import annotations

from pathlib import Path

import msgspec
from log_samples import DEVICE, record
from ship_records import selected, ship

from sparsetvm.core.config import Config
from sparsetvm.core.layout import Tiled
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.record import Record
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.log.journal import append, read_records
from sparsetvm.report.story import target_of
from sparsetvm.search.candidates import candidates_of

WORKLOAD = Workload(
    "matmul", 256, 512, 128, Tiled(128, 512, 16), Tiled(128, 256, 16), Epilogue(),
    PatternSummary("unstructured", (1, 1), 0.1, 1.2, 0, "d"),
)  # fmt: skip
CANDIDATES = candidates_of(WORKLOAD, target_of(DEVICE, 1))


def final(template: str, time_us: float, **knobs: int) -> Record:
    """A time of the template's default config, some knobs changed, from a final round."""
    choice = CANDIDATES.choice(template)
    assert choice is not None
    config: Config = choice.default.replace(**knobs)
    found = record(time_us, workload=WORKLOAD, config=config, stage="final", template_version=choice.version_of(config))
    return msgspec.structs.replace(found, space=choice.space.fingerprint)


def test_fastest_config_and_fastest_dense_config_are_shipped() -> None:
    sparse, slower = final("x86.pattern_code", 10.0), final("x86.pattern_code", 12.0, rows=12)
    dense = final("x86.dense", 90.0)
    assert selected([slower, dense, sparse]) == [sparse, dense]


def test_task_whose_fastest_config_the_templates_no_longer_declare_is_left_out() -> None:
    stale, dense = final("x86.pattern_code", 10.0, rows=99), final("x86.dense", 90.0)
    assert selected([stale, dense]) == []
    fresh = final("x86.pattern_code", 9.0)
    assert selected([stale, dense, fresh]) == [fresh, dense]


def test_kept_records_stay_unless_the_logs_have_faster_ones(tmp_path: Path) -> None:
    wide = msgspec.structs.replace(WORKLOAD, n=256, layout_in=Tiled(256, 512, 16), layout_out=Tiled(256, 256, 16))
    slow, fast = final("x86.pattern_code", 10.0), final("x86.pattern_code", 9.0, rows=12)
    other = msgspec.structs.replace(final("x86.pattern_code", 20.0), workload=wide)
    logs = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    append(logs[0], slow, other)
    append(logs[1], fast)
    ship(logs[:1], tmp_path / "kept")
    (path,) = ship(logs[1:], tmp_path / "kept", keep=True)
    assert {(r.workload.n, r.best_us) for r in read_records(path).records} == {(128, 9.0), (256, 20.0)}
    (path,) = ship(logs[1:], tmp_path / "kept")
    assert {(r.workload.n, r.best_us) for r in read_records(path).records} == {(128, 9.0)}
