from __future__ import annotations

import re
from pathlib import Path

import pytest

import sparsetvm
from sparsetvm.core.target import host_target
from sparsetvm.errors import UsageError
from sparsetvm.settings import VARIABLES, Settings, read_settings, unknown_variables


def test_settings_are_empty_when_nothing_is_set() -> None:
    assert read_settings({}) == Settings()
    assert read_settings({name: "" for name in VARIABLES}) == Settings()


def test_settings_have_types() -> None:
    found = read_settings({"SPARSETVM_LOG_DIR": "a", "SPARSETVM_RECORDS": "b:c::d", "SPARSETVM_ISA": "avx2"})
    assert found == Settings(Path("a"), (Path("b"), Path("c"), Path("d")), "avx2")


def test_settings_refuse_an_unknown_instruction_set() -> None:
    with pytest.raises(UsageError, match=r"SPARSETVM_ISA=avx513.*did you mean 'avx512'"):
        read_settings({"SPARSETVM_ISA": "avx513"})


def test_host_target_obeys_the_isa_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSETVM_ISA", "avx2")
    assert host_target(1).isa == "avx2"


def test_unknown_variables_are_named_with_the_closest_known_one() -> None:
    lines = unknown_variables({"SPARSETVM_RECORD": "x", "SPARSETVM_ISA": "avx2", "HOME": "y"})
    assert len(lines) == 1
    assert "SPARSETVM_RECORD" in lines[0]
    assert "SPARSETVM_RECORDS" in lines[0]


def test_variables_are_at_most_a_dozen_and_documented() -> None:
    assert len(VARIABLES) <= 12
    assert all(kind and meaning for kind, meaning in VARIABLES.values())


def test_no_other_file_reads_a_variable() -> None:
    package = Path(sparsetvm.__file__).parent
    reads = re.compile(r"(environ|getenv)[^\n]*SPARSETVM_")
    offenders = [p.name for p in package.rglob("*.py") if p.name != "settings.py" and reads.search(p.read_text())]
    assert offenders == []
