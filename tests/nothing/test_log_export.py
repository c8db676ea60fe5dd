from __future__ import annotations

import csv
import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from log_samples import CONFIG, WORKLOAD, record, records

from sparsetvm.core.record import STATUSES, Conditions, Record
from sparsetvm.log.export import _t4, export

T4_INVALIDITY = {"timeout", "compile", "runtime", "correctness", "constraints", "correct"}


def test_export_is_csv_without_formulas(tmp_path: Path) -> None:
    export([record(2.5), record(None, message="=HYPERLINK(1), or\tnot")], tmp_path / "log.csv")
    with (tmp_path / "log.csv").open(newline="") as file:
        good, bad = csv.DictReader(file)
    assert (good["workload"], good["pattern"], good["best_us"]) == ("matmul 512x256 n=128", "unstructured", "2.5")
    assert good["config"] == str(CONFIG)
    assert (bad["status"], bad["best_us"]) == ("crash", "")
    assert bad["message"].startswith("'=HYPERLINK")


def test_t4_has_the_fields_of_its_schema(tmp_path: Path) -> None:
    known = Conditions("performance", 3700.0, 0.5, memory_mhz=3201.0)
    export(
        [record(2500.0, error=1e-7, build_seconds=0.25, conditions=known, other_us=4000.0), record(None)],
        tmp_path / "log.json",
        "t4",
    )
    document = json.loads((tmp_path / "log.json").read_text())
    assert document["schema_version"] == "1.0.0"
    good, crash = document["results"]
    assert good["timestamp"] == record().time
    assert good["configuration"] == {"template": "x86.pattern_code", "k_block": 384, "order": "rows", "rows": 28}
    assert good["objectives"] == ["time"]
    assert good["times"] == {"compilation_time": 250.0, "runtimes": [2.5]}
    assert (good["invalidity"], good["correctness"]) == ("correct", 1)
    assert good["measurements"] == [
        {"name": "time", "value": 2.5, "unit": "ms"},
        {"name": "time_other_l2", "value": 4.0, "unit": "ms"},
        {"name": "relative_error", "value": 1e-7, "unit": ""},
        {"name": "clock", "value": 3700.0, "unit": "MHz"},
        {"name": "memory_clock", "value": 3201.0, "unit": "MHz"},
        {"name": "load", "value": 0.5, "unit": ""},
    ]
    assert good["workload_id"] == WORKLOAD.id
    assert good["workload"]["pattern"]["digest"] == WORKLOAD.pattern.digest
    assert (crash["invalidity"], crash["correctness"], crash["status"]) == ("runtime", 0, "crash")
    assert crash["times"]["runtimes"] == []


def test_t4_knows_every_status() -> None:
    made = json.loads(_t4([record(1.0 if status == "ok" else None, status=status) for status in STATUSES]))
    assert {result["invalidity"] for result in made["results"]} == T4_INVALIDITY


@settings(max_examples=50, deadline=None)
@given(st.lists(records(), max_size=3))
def test_t4_of_any_records_fits_the_types_of_the_schema(samples: list[Record]) -> None:
    for result in json.loads(_t4(samples))["results"]:
        assert set(result) >= {"configuration", "times", "invalidity", "correctness"}
        assert isinstance(result["timestamp"], str)
        assert isinstance(result["configuration"], dict)
        assert isinstance(result["objectives"], list)
        assert isinstance(result["times"]["compilation_time"], float)
        assert isinstance(result["times"]["runtimes"], list)
        assert result["invalidity"] in T4_INVALIDITY
        assert isinstance(result["correctness"], int)
        for measurement in result["measurements"]:
            assert isinstance(measurement["name"], str)
            assert isinstance(measurement["value"], float)
            assert isinstance(measurement["unit"], str)
