"""What is fuzzed: functions of arbitrary bytes that may raise errors of errors.py or run out of memory, nothing else.

`scripts/fuzz.py` runs them under a coverage-guided fuzzer; `test_fuzz.py` runs them over their corpus.
"""

from __future__ import annotations

import math
import os
import random
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto

from sparsetvm.analysis.integer_inputs import integer_inputs
from sparsetvm.analysis.layers import inspect_layer
from sparsetvm.analysis.magnitude import parse_pattern, prune_weight
from sparsetvm.analysis.patterns import summarize
from sparsetvm.analysis.structure import find_structure
from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN, Tiled
from sparsetvm.core.target import DeviceFingerprint, Target, ToolchainFingerprint, parse_target
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.errors import SparseTvmError
from sparsetvm.frontend.load import load_model
from sparsetvm.log.compact import compact
from sparsetvm.log.export import export
from sparsetvm.log.journal import read_records
from sparsetvm.log.line import checksum
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.log.maintenance import age, check, list_records, merge
from sparsetvm.rewrite.pipeline import rewrite
from sparsetvm.rewrite.workloads import make_tasks

TARGET = Target("cpu", "znver4", "avx512", l1=32 << 10, l2=1 << 20)
_DEVICE = DeviceFingerprint("cpu", "AuthenticAMD", "AMD EPYC 9R14 (family 25 model 17)", "avx512", 2, "0123456789ab")
_TOOLCHAIN = ToolchainFingerprint("0.1.0", "0.27.0.post1", "2.0.0", "3.11.2")
_PATTERNS = ("unstructured", "block:4x1", "n:m:2:4", "rows", "columns", "block:3x5")
_MAX_REWRITTEN = 1 << 24  # elements; more is only slow

_folder = tempfile.TemporaryDirectory(prefix="sparsetvm-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)


def fuzz_loader(data: bytes) -> None:
    """A model file: parse, import, look at integer inputs, rewrite, make workloads."""
    path = Path(_folder.name) / "m.onnx"
    path.write_bytes(data)
    try:
        graph = load_model(path).graph
        if sum(np.prod(value.shape, dtype=float) for value in graph.values.values()) < _MAX_REWRITTEN:
            integer_inputs(graph)
            make_tasks(rewrite(graph, TARGET), TARGET)
    except (SparseTvmError, MemoryError):
        return


def fuzz_analysis(data: bytes) -> None:
    """A weight: two bytes of rows, two of columns, one of what to prune, one of how the rest makes a matrix."""
    if len(data) < 7:
        return
    m, k = (1 + size % 80 for size in struct.unpack_from("<HH", data))
    how, pattern = data[4], _PATTERNS[data[5] % len(_PATTERNS)]
    body = np.frombuffer(data[6:], np.uint8)
    if how % 3 == 0:  # bits
        values = np.resize(np.unpackbits(body), m * k).astype(np.float32)
    elif how % 3 == 1:  # floats of any kind
        values = np.resize(np.frombuffer(data[6 : 6 + len(body) // 4 * 4] or bytes(4), np.float32), m * k)
    else:  # one pattern of a row, moved from row to row
        row = np.unpackbits(body)
        values = np.concatenate([np.resize(np.roll(row, i * (how // 3)), k) for i in range(m)]).astype(np.float32)
    weight = values.reshape(m, k).copy()
    try:
        summary = summarize(weight)
        found = find_structure(weight)
        found.explain()
        workload = Workload("matmul", m, k, 16, Tiled(16, k, 16), Tiled(16, m, 16), Epilogue(), summary)
        inspect_layer("layer", workload, TARGET, weight)
        assert found.nnz == np.count_nonzero(weight)
        assert 0 <= summary.density <= 1
        kept = prune_weight(weight, None if pattern.startswith("n:m") else how / 256, parse_pattern(pattern))
        assert kept.shape == weight.shape
    except SparseTvmError:
        return


_WORKLOAD = Workload("matmul", 512, 256, 128, Tiled(128, 256, 16), PLAIN, Epilogue(), summarize(np.eye(4, dtype="f")))


def fuzz_log(data: bytes) -> None:
    """A tuning log; from a first byte that is odd on, the checksums of its lines are made right."""
    folder = Path(_folder.name) / "logs"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    lines = data[1:].split(b"\n")
    if data[:1] and data[0] & 1:
        lines = [_signed(line) for line in lines]
    path = folder / "cpu-a.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        result = read_records(path)
        index = RecordIndex.open(folder, shipped=False)
        for workload in {_WORKLOAD, *(record.workload for record in result.records[:2])}:
            decision = index.best(workload, _DEVICE, _valid, toolchain=_TOOLCHAIN)
            assert decision.why
            index.seeds(workload, 4, _DEVICE)
            index.training(workload, _DEVICE)
            workload.describe()
        for row in list_records(result.records):
            age(row.newest)
        export(result.records, folder / "out.csv")
        export(result.records, folder / "out.json", "t4")
        compact(folder)
        check(folder, repair=True)
        merge([folder], folder / "merged.jsonl")
        assert not read_records(path).bad
    except SparseTvmError:
        return


def _valid(config: Config, version: int, space: str) -> bool:
    return version == 1


def _signed(line: bytes) -> bytes:
    """A line whose record has the right checksum, if it can be told where the record is."""
    start = line.find(b'"record":')
    if start < 0 or not line.endswith(b"}"):
        return line
    body = line[start + 9 : -1]
    return b'{"schema":1,"sum":"%s","workload":"","record":%s}' % (checksum(body).encode(), body)


def fuzz_target(data: bytes) -> None:
    """What stands behind --target; the first byte says how many threads, and whether TF32 is allowed."""
    text = data[1:].decode("utf-8", "surrogateescape")
    first = data[0] if data else 0
    try:
        target = parse_target(text, (first >> 1) - 1, bool(first & 1))
        assert target.threads >= 1
        assert target.lanes in (4, 8, 16)
        again = parse_target(str(target), target.threads)
        assert str(again) == str(target)
    except SparseTvmError as error:
        if any(not c.isprintable() and c != "\n" for c in str(error)):
            raise ValueError(f"a message for no terminal: {error!r}") from error


TARGETS: dict[str, Callable[[bytes], None]] = {
    "loader": fuzz_loader,
    "analysis": fuzz_analysis,
    "log": fuzz_log,
    "target": fuzz_target,
}
MAX_BYTES = {"loader": 1 << 15, "analysis": 4096, "log": 1 << 14, "target": 64}


# ---- mutations that know the format: few random bytes of a model or a record still parse ----


def mutate_model(data: bytes, rng: random.Random) -> bytes:
    """One change of a model that keeps it a protobuf message; `data` as it is when it is none."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return data
    graph = model.graph
    messages = [*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info, *model.functions]
    messages += [attribute for node in graph.node for attribute in node.attribute]
    if not messages:
        return data
    try:
        names = [value for node in graph.node for value in (*node.input, *node.output)]
    except UnicodeDecodeError:
        return data
    try:
        for _ in range(rng.choice((1, 1, 2, 4))):
            _change(rng.choice(messages), rng, names)
        if rng.random() < 0.15:
            _make_constant(graph, rng)
    except (UnicodeDecodeError, TypeError):  # a text of the file that is none, read where another one stands beside it
        return data
    if rng.random() < 0.1:
        graph.node.add().CopyFrom(rng.choice(graph.node)) if graph.node else None
    if rng.random() < 0.1 and len(graph.node) > 1:
        del graph.node[rng.randrange(len(graph.node))]
    try:
        return model.SerializeToString()
    except (EncodeError, ValueError):
        return data


_OPS = sorted({schema.name for schema in onnx.defs.get_all_schemas()})
_INTEGERS = (0, 1, -1, 2, 3, 4, 7, 8, 16, 64, 1 << 20, 1 << 31, -(1 << 31), (1 << 63) - 1, -(1 << 63), 1 << 32, 1000)


def _change(message: object, rng: random.Random, names: list[str]) -> None:
    if isinstance(message, onnx.NodeProto):
        part = rng.randrange(5)
        if part == 0:
            message.op_type = rng.choice(_OPS)
        elif part == 1 and message.input:
            message.input[rng.randrange(len(message.input))] = rng.choice([*names, "", "new"])
        elif part == 2:
            message.input.append(rng.choice([*names, ""]))
        elif part == 3:
            _add_attribute(message, rng)
        elif message.input:
            message.input.pop()
    elif isinstance(message, onnx.TensorProto):
        part = rng.randrange(4)
        if part == 0 and message.dims:
            message.dims[rng.randrange(len(message.dims))] = rng.choice(_INTEGERS)
        elif part == 1:
            message.data_type = rng.randrange(28)
        elif part == 2:
            message.raw_data = bytes(rng.randrange(256) for _ in range(rng.randrange(64)))
        else:
            message.name = rng.choice([*names, "", "new"])
    elif isinstance(message, onnx.ValueInfoProto):
        dims = message.type.tensor_type.shape.dim
        if dims and rng.random() < 0.7:
            dims[rng.randrange(len(dims))].dim_value = rng.choice(_INTEGERS)
        else:
            message.type.tensor_type.elem_type = rng.randrange(28)
    elif isinstance(message, onnx.AttributeProto):
        part = rng.randrange(4)
        if part == 0:
            message.i = rng.choice(_INTEGERS)
        elif part == 1 and message.ints:
            message.ints[rng.randrange(len(message.ints))] = rng.choice(_INTEGERS)
        elif part == 2 and message.ints:
            message.ints.append(rng.choice(_INTEGERS))
        else:
            message.f = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))


def _add_attribute(node: onnx.NodeProto, rng: random.Random) -> None:
    """One of integers that the operator knows and the node lacks."""
    if node.domain or not onnx.defs.has(node.op_type):
        return
    known = onnx.defs.get_schema(node.op_type).attributes.values()
    given = {attribute.name for attribute in node.attribute}
    kinds = (onnx.defs.OpSchema.AttrType.INT, onnx.defs.OpSchema.AttrType.INTS)
    lacking = [attribute for attribute in known if attribute.type in kinds and attribute.name not in given]
    if lacking:
        attribute, value = rng.choice(lacking), rng.choice(_INTEGERS)
        whole = [value] * rng.randrange(1, 5) if attribute.type == kinds[1] else value
        node.attribute.append(onnx.helper.make_attribute(attribute.name, whole))


def _make_constant(graph: onnx.GraphProto, rng: random.Random) -> None:
    """An input becomes a constant of small numbers with an extreme one among them: what is folded takes another way."""
    if not graph.input:
        return
    info = rng.choice(graph.input)
    shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    kind = info.type.tensor_type.elem_type
    small = min(shape, default=1) > 0 and np.prod(shape, dtype=float) <= 4096
    if kind not in (TensorProto.FLOAT, TensorProto.INT64) or not small:
        return
    data = np.array(
        [rng.randrange(4) for _ in range(math.prod(shape))], np.float32 if kind == TensorProto.FLOAT else np.int64
    )
    if rng.random() < 0.5:
        data[rng.randrange(data.size)] = np.clip(rng.choice(_INTEGERS), -(1 << 62), 1 << 62)
    graph.initializer.append(onnx.numpy_helper.from_array(data.reshape(shape), info.name))
    graph.input.remove(info)


def mutate_log(data: bytes, rng: random.Random) -> bytes:
    """Another value somewhere in one record."""
    lines = data[1:].split(b"\n")
    at = rng.randrange(len(lines))
    start = lines[at].find(b'"record":')
    if start < 0:
        return data
    try:
        record = msgspec.json.decode(lines[at][start + 9 : -1])
        _change_value(record, rng)
        lines[at] = lines[at][: start + 9] + msgspec.json.encode(record) + b"}"
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError):
        return data
    return b"\x01" + b"\n".join(lines)


_VALUES = (
    0,
    1,
    -1,
    2.5,
    1e308,
    -1e308,
    1 << 40,
    1 << 62,
    "",
    "x",
    None,
    True,
    [],
    {},
    "\u202e",
    "cuda",
    "conv2d",
    "block",
)


def _change_value(value: object, rng: random.Random) -> None:
    if not isinstance(value, dict | list) or not value:
        return
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    if isinstance(value[key], dict | list) and rng.random() < 0.8:
        _change_value(value[key], rng)
    elif isinstance(value, dict) and rng.random() < 0.1:
        del value[key]
    else:
        value[key] = rng.choice(_VALUES)


MUTATORS: dict[str, Callable[[bytes, random.Random], bytes]] = {"loader": mutate_model, "log": mutate_log}
