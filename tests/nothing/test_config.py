"""A config is read back from the text that manifests hold."""

from __future__ import annotations

import pytest

from sparsetvm.core.config import Config


@pytest.mark.parametrize("config", [Config("x86.dense"), Config.of("x86.pattern_code", rows=30, order="shared")])
def test_parse_reads_what_str_wrote(config: Config) -> None:
    assert Config.parse(str(config)) == config


@pytest.mark.parametrize(
    "text", ["", "Config.of()", "Config.of(3)", "exit()", "Config.of('a', x=[1])", "Config.of('a', x=f())", "((("]
)
def test_parse_runs_nothing_and_rejects_everything_else(text: str) -> None:
    with pytest.raises(ValueError, match="is no config"):
        Config.parse(text)
