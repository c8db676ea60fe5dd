"""One line of a tuning log: `{"schema": 1, "sum": ..., "workload": ..., "record": {...}}`.

`sum` is a digest over the bytes of the record as they stand in the line, so that a later version that adds fields still
verifies old lines. `workload` is the workload's id, there for people who grep; readers compute it anew.
A line is hostile input: its size and nesting are limited and every number is checked before the record is handed out.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re

import msgspec
from msgspec.structs import astuple

from sparsetvm.core.layout import AnyLayout, BatchTiles, Planes, PlaneTiles, Tiled
from sparsetvm.core.record import SCHEMA_VERSION, Conditions, Record
from sparsetvm.core.workload import ConvGeometry, Workload

MAX_LINE = 1 << 20
_MAX_NESTING = 16
_MAX_MESSAGE = 2000
_MAX_SIZE = 1 << 40
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


class BadLine(ValueError):
    """The line is skipped and counted; the text says why."""


class NewerSchema(Exception):
    """The line was written by a later version."""

    def __init__(self, schema: int) -> None:
        super().__init__(schema)
        self.schema = schema


class _Header(msgspec.Struct):
    schema: int


class _Line(msgspec.Struct):
    schema: int
    sum: str
    workload: str
    record: msgspec.Raw


_header = msgspec.json.Decoder(_Header)
_line = msgspec.json.Decoder(_Line)
_record = msgspec.json.Decoder(Record)


def checksum(record: bytes) -> str:
    """Digest of a record's JSON."""
    return hashlib.sha256(record).hexdigest()[:16]


def encode_line(record: Record) -> bytes:
    """The line, newline included. Raises ValueError for a record that `decode_line` would refuse."""
    message = record.message[:_MAX_MESSAGE].encode("utf-8", "replace").decode("utf-8")
    message = "".join(c if c.isprintable() else " " for c in message)
    if message != record.message:
        record = msgspec.structs.replace(record, message=message)
    problem = _problem(record)
    if problem:
        raise ValueError(f"not a valid record: {problem}")
    body = msgspec.json.encode(record, order="deterministic")
    line = _Line(record.schema, checksum(body), record.workload.id, msgspec.Raw(body))
    return msgspec.json.encode(line) + b"\n"


def decode_line(line: bytes) -> tuple[str, Record]:
    """(checksum, record) of a line without its newline. Raises BadLine or NewerSchema."""
    if len(line) > MAX_LINE:
        raise BadLine(f"longer than {MAX_LINE >> 20} MB")
    if _too_deep(line):
        raise BadLine("nested too deeply")
    try:
        schema = _header.decode(line).schema
        if schema > SCHEMA_VERSION:
            raise NewerSchema(schema)
        parsed = _line.decode(line)
        body = bytes(parsed.record)
        if checksum(body) != parsed.sum:
            raise BadLine("checksum does not match")
        record = _record.decode(body)
    except msgspec.ValidationError as error:
        raise BadLine(f"wrong type: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadLine(f"not JSON: {error}") from None
    problem = _problem(record) or ("schemas of line and record differ" if record.schema != schema else "")
    if problem:
        raise BadLine(problem)
    return parsed.sum, record


def _too_deep(line: bytes) -> bool:
    if line.count(b"[") + line.count(b"{") <= _MAX_NESTING:
        return False
    depth = 0
    for bracket in re.findall(rb"[\[\]{}]", _STRING.sub(b"", line)):
        depth += 1 if bracket in b"[{" else -1
        if depth > _MAX_NESTING:
            return True
    return False


def _problem(record: Record) -> str:
    """Why a well-typed record makes no sense, "" when it does."""
    if record.schema < 1 or record.template_version < 0:
        return "schema or template version out of range"
    if any(not (math.isfinite(t) and t > 0) for t in record.times_us):
        return "a time is not a positive number"
    if record.other_us is not None and not (math.isfinite(record.other_us) and record.other_us > 0):
        return "the time with the other state of L2 is not a positive number"
    if bool(record.times_us) != (record.status == "ok"):
        return "times must be there exactly when the status is ok"
    if record.error is not None and record.error < 0:
        return "negative error"
    if not (math.isfinite(record.build_seconds) and record.build_seconds >= 0):
        return "build time is not a number"
    if record.conditions is not None and not _conditions_ok(record.conditions):
        return "a number of the conditions is out of range"
    if not _printable(record):
        return "a text holds control characters"
    if not all(map(str.isidentifier, (*record.config.template.split("."), *dict(record.config.knobs)))):
        return "the template or a knob has an impossible name"
    names = [name for name, _ in record.config.knobs]
    if any(a >= b for a, b in itertools.pairwise(names)):
        return "knobs are not sorted by name"
    if any(isinstance(value, int) and abs(value) > _MAX_SIZE for _, value in record.config.knobs):
        return "a knob's value is out of range"
    return _workload_problem(record.workload)


def _printable(record: Record) -> bool:
    """No text can move the cursor or break the line of whoever prints it."""
    texts = [record.message, record.space, record.run, record.time, record.config.template, record.remeasured]
    texts += [] if record.conditions is None else [record.conditions.governor]
    texts += [value for _, value in record.config.knobs if isinstance(value, str)]
    texts += [t for t in (*astuple(record.device), *astuple(record.toolchain)) if isinstance(t, str)]
    texts += [record.workload.dtype, record.workload.pattern.digest]
    return all(map(str.isprintable, texts))


def _conditions_ok(conditions: Conditions) -> bool:
    numbers = (conditions.mhz, conditions.load, conditions.noise, conditions.memory_mhz)
    return all(number is None or (math.isfinite(number) and number >= 0) for number in numbers)


def _workload_problem(workload: Workload) -> str:
    pattern = workload.pattern
    if not _sizes(workload.m, workload.k, workload.n, workload.threads, *pattern.block):
        return "a size of the workload is out of range"
    if not (0 <= pattern.density <= 1 and 0 <= pattern.empty_rows <= workload.m):
        return "the pattern's density or empty rows are out of range"
    if not (math.isfinite(pattern.row_imbalance) and pattern.row_imbalance >= 0):
        return "the pattern's row imbalance is out of range"
    if not 0 < workload.active <= 1:
        return "the activation density is out of range"
    if not (math.isfinite(workload.epilogue.low) and math.isfinite(workload.epilogue.high)):
        return "a bound of the epilogue is not a number"
    if not all(map(_layout_ok, (workload.layout_in, workload.layout_out, workload.residual_layout))):
        return "a size of a layout is out of range"
    if workload.conv is not None and not _conv_ok(workload.conv):
        return "a size of the convolution is out of range"
    return ""


def _sizes(*sizes: int) -> bool:
    return all(1 <= size <= _MAX_SIZE for size in sizes)


def _layout_ok(layout: AnyLayout) -> bool:
    if isinstance(layout, Tiled):
        return _sizes(layout.rows, layout.cols, layout.lanes)
    if isinstance(layout, Planes):
        sizes = (layout.batch, layout.channels, layout.height, layout.width, layout.lanes)
        return _sizes(*sizes, *layout.phases) and 0 <= layout.pad <= _MAX_SIZE
    if isinstance(layout, BatchTiles):
        return _sizes(layout.channels, layout.height, layout.width, layout.lanes) and 0 <= layout.pad <= _MAX_SIZE
    if isinstance(layout, PlaneTiles):
        sizes = (layout.batch, layout.channels, layout.height, layout.width, layout.lanes)
        return _sizes(*sizes) and 0 <= layout.pad <= _MAX_SIZE
    return True


def _conv_ok(conv: ConvGeometry) -> bool:
    image = (conv.in_channels, conv.in_height, conv.in_width, conv.groups)
    if not (_sizes(*image, *conv.kernel, *conv.stride, *conv.dilation) and all(0 <= p <= _MAX_SIZE for p in conv.pads)):
        return False
    return conv.out_height >= 1 and conv.out_width >= 1
