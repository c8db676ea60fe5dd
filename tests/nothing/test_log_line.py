from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_samples import record, records

from sparsetvm.core.layout import BatchTiles
from sparsetvm.core.record import Record
from sparsetvm.log.line import MAX_LINE, BadLine, NewerSchema, checksum, decode_line, encode_line

LANES = {"layout": "batch_tiles", "channels": 3, "height": 7, "width": 7, "pad": 1, "lanes": 16}


def forge(**changes: Any) -> bytes:
    """A line whose record was changed by hand and whose checksum was made right again. "a.b" names a nested key."""
    body = msgspec.to_builtins(record())
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = body
        for key in parents:
            place = place[key]
        place[last] = value
    text = json.dumps(body).encode()
    head = {"schema": 1, "sum": checksum(text), "workload": "x"}
    return json.dumps(head).encode()[:-1] + b', "record": ' + text + b"}"


@settings(max_examples=150, deadline=None)
@given(records())
def test_line_round_trips(sample: Record) -> None:
    line = encode_line(sample)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_line(line[:-1])[1] == sample


@settings(max_examples=50, deadline=None)
@given(records())
def test_line_is_the_same_for_equal_records(sample: Record) -> None:
    assert encode_line(sample) == encode_line(decode_line(encode_line(sample)[:-1])[1])


def test_line_carries_schema_checksum_and_workload_id() -> None:
    line = json.loads(encode_line(record()))
    assert list(line) == ["schema", "sum", "workload", "record"]
    assert line["schema"] == 1
    assert line["workload"] == record().workload.id


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_line_with_one_changed_byte_is_refused_or_equal(data: st.DataObject) -> None:
    line = bytearray(encode_line(record())[:-1])
    place = data.draw(st.integers(0, len(line) - 1))
    line[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadLine, NewerSchema):
        assert decode_line(bytes(line))[1] == record()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_line_of_anything_is_refused(junk: bytes) -> None:
    with pytest.raises(BadLine):
        decode_line(junk)


def test_forged_line_is_read_when_nothing_is_wrong() -> None:
    assert decode_line(forge())[1] == record()
    assert decode_line(forge(config__template="cuda.unknown"))[1].config.template == "cuda.unknown"
    assert decode_line(forge(key_of_a_later_version=[1, 2]))[1] == record()
    assert decode_line(forge(workload__layout_in=LANES))[1].workload.layout_in == BatchTiles(3, 7, 7, 1, 16)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"times_us": [-1.0]}, "not a positive"),
        ({"times_us": [0.0]}, "not a positive"),
        ({"times_us": [float("nan")]}, "not JSON"),
        ({"times_us": [float("inf")]}, "not JSON"),
        ({"times_us": []}, "exactly when"),
        ({"status": "crash"}, "exactly when"),
        ({"status": "splendid"}, "wrong type"),
        ({"times_us": ["1"]}, "wrong type"),
        ({"workload": None}, "wrong type"),
        ({"workload__m": 0}, "size of the workload"),
        ({"workload__m": 10**30}, "size of the workload|wrong type"),
        ({"workload__m": 1.5}, "wrong type"),
        ({"workload__m": True}, "wrong type"),
        ({"workload__pattern__density": 1.5}, "density"),
        ({"workload__pattern__row_imbalance": -1.0}, "imbalance"),
        ({"workload__pattern__kind": "lucky"}, "wrong type"),
        ({"workload__layout_in__lanes": 0}, "layout"),
        ({"workload__layout_in__layout": "spiral"}, "wrong type"),
        ({"workload__layout_in": LANES | {"pad": -1}}, "layout"),
        ({"workload__layout_in": LANES | {"height": 0}}, "layout"),
        ({"workload__conv": {"in_channels": 1, "in_height": 1, "in_width": 1, "kernel": [3, 3]}}, "convolution"),
        ({"workload__conv": {"in_channels": 1, "in_height": 9, "in_width": 9, "kernel": [0, 3]}}, "convolution"),
        ({"config__knobs": [["b", 1], ["a", 2]]}, "sorted"),
        ({"config__knobs": [["a", 1], ["a", 2]]}, "sorted"),
        ({"config__knobs": [["a", 1 << 60]]}, "value is out of range"),
        ({"config__knobs": [["a", [1]]]}, "wrong type"),
        ({"config__knobs": [["a=1); evil(", 1]]}, "impossible name"),
        ({"config__template": "x'y"}, "impossible name"),
        ({"config__template": ""}, "impossible name"),
        ({"message": "\x1b[2J"}, "control characters"),
        ({"device__model": "a\nb"}, "control characters"),
        ({"build_seconds": -1.0}, "build time"),
        ({"error": -1.0}, "negative error"),
        ({"template_version": -1}, "out of range"),
        ({"conditions": {"mhz": -1.0}}, "conditions"),
        ({"conditions": {"memory_mhz": -1.0}}, "conditions"),
        ({"other_us": 0.0}, "other state of L2"),
        ({"conditions": {"governor": "\x1b[2J"}}, "control characters"),
        ({"remeasured": "a\nb"}, "control characters"),
        ({"schema": 2}, "schemas of line and record differ"),
        ({"message": "x" * MAX_LINE}, "longer than"),
    ],
)
def test_line_is_refused_with_its_reason_when(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadLine, match=reason):
        decode_line(forge(**changes))


def test_line_is_refused_when_it_nests_deeply() -> None:
    for depth in (20, 100_000):
        with pytest.raises(BadLine, match="nested too deeply"):
            decode_line(forge()[:-1] + b', "extra": ' + b"[" * depth + b"]" * depth + b"}")


def test_brackets_in_a_text_are_not_nesting() -> None:
    sample = record(None, message="[" * 500 + '"{\\')
    assert decode_line(encode_line(sample)[:-1])[1] == sample


def test_newer_schema_is_told_apart_from_damage() -> None:
    with pytest.raises(NewerSchema):
        decode_line(b'{"schema": 2, "anything": "else"}')


def test_message_is_made_printable_and_short_when_written() -> None:
    read = decode_line(encode_line(record(None, message="\x1b[31mred\ud800\n" + "x" * 5000))[:-1])[1]
    assert read.message.isprintable()
    assert read.message.startswith(" [31mred? x")
    assert len(read.message) <= 2000


def test_encode_refuses_what_could_not_be_read_back() -> None:
    for bad in (record(float("nan")), record(-1.0), record(times_us=()), record(template_version=-1)):
        with pytest.raises(ValueError, match="not a valid record"):
            encode_line(bad)
