"""A tuning log is hostile input: nothing in it loads code, opens a path or changes a setting.

A record can do one thing: select a config that the local template declares for the task.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import log_samples
import msgspec
import numpy as np
import pytest
from audit import audited, opened
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from log_samples import DEVICE, TOOLCHAIN, record
from sparsetvm.schedules.base import template_names

from sparsetvm.build.choose import choose
from sparsetvm.cli.main import cli
from sparsetvm.core.config import Config
from sparsetvm.core.layout import Tiled
from sparsetvm.core.record import Record
from sparsetvm.core.target import Target, ToolchainFingerprint
from sparsetvm.core.task import Task
from sparsetvm.log.line import checksum
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.search.candidates import candidates_of, validator
from sparsetvm.search.cost_model import CostModel, Sample

WORKLOAD = msgspec.structs.replace(log_samples.WORKLOAD, layout_out=Tiled(128, 512, 16))
TARGET = Target("cpu", "znver4", "avx512", l1=32 << 10, l2=1 << 20)
TEXTS = (
    "/etc/hostname", "../../../etc/passwd", "file:///etc/hostname", "os.system('touch owned')", "$(touch owned)",
    "__import__('os').system('touch owned')", "!!python/object/apply:os.system [touch owned]",
    "cos\nsystem\n(S'id'\ntR.",
    "-march=native -include /etc/passwd", "--config=/etc/x", "sparsetvm.cli.main", "%n%s{0.__class__}", "\x1b]0;x\x07",
)  # fmt: skip
_hostile = st.sampled_from(TEXTS)


def forged(body: bytes) -> bytes:
    """A line with a right checksum around any record."""
    return (
        msgspec.json.encode({"schema": 1, "sum": checksum(body), "workload": "x", "record": msgspec.Raw(body)}) + b"\n"
    )


def texts_replaced(value: object, text: str) -> list[object]:
    """Copies of a JSON value, in each of which one text is another."""
    if isinstance(value, str):
        return [text]
    if isinstance(value, dict):
        changed = [{**value, key: new} for key in value for new in texts_replaced(value[key], text)]
        return [*changed, {**value, text: text}]
    if isinstance(value, list):
        return [[*value[:i], new, *value[i + 1 :]] for i in range(len(value)) for new in texts_replaced(value[i], text)]
    return [text]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good record, and every record that one hostile text in one field makes."""
    monkeypatch.chdir(tmp_path)
    good = msgspec.json.decode(msgspec.json.encode(record(workload=WORKLOAD)))
    lines = [forged(msgspec.json.encode(good))]
    for text in TEXTS:
        lines += [forged(msgspec.json.encode(bad)) for bad in texts_replaced(good, text)]
    path = tmp_path / "logs" / "cpu-a.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"".join(lines))
    return path


def harmless(events: list, folder: Path) -> None:
    """Only files of the folder were opened, nothing was started, and only code that is installed was imported."""
    for path, _ in opened(events):
        resolved = os.path.realpath(path)
        libraries = tuple(os.path.realpath(entry) for entry in (sys.prefix, sys.base_prefix, *sys.path) if entry)
        installed = resolved.startswith(libraries)
        machine = resolved.startswith(("/proc/", "/sys/", "/dev/null"))
        assert resolved.startswith(str(folder.resolve())) or installed or machine, path
    assert not {name for name, _ in events} & {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.fork"}
    assert not {name for name, _ in events} & {"pickle.find_class", "socket.connect", "os.putenv", "os.unsetenv"}
    assert not list(folder.rglob("owned"))


@pytest.mark.parametrize(
    "words", [["ls"], ["check"], ["check", "--repair"], ["compact"], ["merge", "-o", "out.jsonl"],
              ["export", "-o", "o.csv"], ["export", "--format", "t4", "-o", "o.json"]], ids=" ".join,
)  # fmt: skip
def test_log_commands_do_nothing_that_a_record_says(words, log, tmp_path):
    CliRunner().invoke(cli, ["log", "ls", "--log-dir", str(tmp_path / "none")])  # imports what it needs
    environment = dict(os.environ)
    with audited() as events:
        result = CliRunner().invoke(cli, ["log", *words, str(log)])
    assert result.exit_code in (0, 7), result.output
    assert all(c.isprintable() or c == "\n" for c in result.output)
    harmless(events, tmp_path)
    assert dict(os.environ) == environment


def test_no_record_makes_the_index_do_more_than_read_its_file(log, tmp_path):
    candidates = candidates_of(WORKLOAD, TARGET)
    valid = validator(candidates)
    with audited() as events:
        index = RecordIndex.open(log.parent, [])
        decision = index.best(WORKLOAD, DEVICE, valid, toolchain=TOOLCHAIN)
        seeds = index.seeds(WORKLOAD, 50, DEVICE, valid)
        index.failed_configs(WORKLOAD, DEVICE, valid)
        index.training(WORKLOAD, DEVICE)
    harmless(events, tmp_path)
    chosen = [] if decision.record is None else [decision.record.config]
    assert all(candidates.contains(config) for config in [*chosen, *seeds])


_value = st.one_of(
    st.integers(-(1 << 40), 1 << 40), st.sampled_from([0, 1, 2, 28, 384, 256]), _hostile.filter(str.isprintable)
)
_knob = st.one_of(st.sampled_from(["rows", "k_block", "order", "tiles", "__class__", "symbol"]))
_config = st.builds(
    lambda template, knobs: Config.of(template, **knobs),
    st.one_of(st.sampled_from(template_names()), st.sampled_from(["os.system", "x86.dense.__init__", "builtins.exec"])),
    st.dictionaries(_knob, _value, max_size=4),
)


@settings(max_examples=60, deadline=None)
@given(configs=st.lists(_config, min_size=1, max_size=4), version=st.integers(0, 3))
def test_record_selects_only_configs_that_the_local_template_declares(configs, version):
    candidates = candidates_of(WORKLOAD, TARGET)
    us = ToolchainFingerprint(TOOLCHAIN.sparsetvm, TOOLCHAIN.tvm, "", "")
    index = RecordIndex()
    for config in configs:
        fields = {"config": config, "template_version": version, "toolchain": us, "stage": "final"}
        index.add(record(0.001, workload=WORKLOAD, **fields))
    weight = np.zeros((WORKLOAD.m, WORKLOAD.k), np.float32)
    (choice,) = choose({"a": Task("a", WORKLOAD, weight, None)}, TARGET, index, DEVICE).values()
    assert candidates.contains(choice.config)


@settings(max_examples=30, deadline=None)
@given(st.lists(_config, min_size=2, max_size=12))
def test_records_of_any_knobs_train_the_cost_model(configs):
    """Knobs that no template has, texts where numbers are usual, numbers beyond all sizes."""
    model = CostModel(WORKLOAD, TARGET)
    other = msgspec.structs.replace(WORKLOAD, n=16)
    model.transfer([Sample(other, config, 10.0**at) for config in configs for at in range(-3, 3)])
    model.add([Sample(WORKLOAD, config, 1.0 + at) for at, config in enumerate(configs)])
    model.fit()
    if model.trained:
        assert np.isfinite(model.predict_us(configs)).all()


def test_no_field_of_a_record_is_a_path_or_a_flag():
    """Whoever adds a field has to think of this: texts are shown or compared, nothing else."""
    texts = {field.name for field in msgspec.structs.fields(Record) if field.type is str}
    assert texts == {"space", "message", "run", "time", "remeasured"}
