"""Hostile and broken files."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from models import bert, conv_net, mlp, mobile_net
from onnx import TensorProto

from sparsetvm.errors import ModelError, SparseTvmError
from sparsetvm.frontend.load import load_model
from sparsetvm.rewrite.canonical import canonicalize


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model with its weights in "weights.bin" beside it."""
    path = tmp_path / "folder" / "m.onnx"
    path.parent.mkdir()
    onnx.save(mlp().model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def edit_entry(path: Path, key: str, value: str) -> None:
    """Set one external data entry of the first tensor."""
    model = onnx.load(path, load_external_data=False)
    entries = model.graph.initializer[0].external_data
    for entry in entries:
        if entry.key == key:
            entry.value = value
            break
    else:
        entries.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "content",
    [b"", b"# a text file\n" * 20, b"\x89PNG\r\n\x1a\n" + bytes(200), b"PK\x03\x04" + bytes(100), os.urandom(0)],
)
def test_read_rejects_a_file_that_is_no_onnx(content, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"not an ONNX"):
        load_model(path)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_read_says_that_a_file_is_truncated(share, tmp_path):
    path = mlp().save(tmp_path / "m.onnx")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match="truncated") as caught:
        load_model(path)
    assert caught.value.exit_code == 3


def test_read_rejects_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(ModelError, match="is not a file"):
            load_model(path)


def test_read_loads_external_data(external):
    inside = mlp().save(external.parent / "inside.onnx")
    loaded, expected = load_model(external), load_model(inside)
    for name, value in expected.graph.values.items():
        if value.is_constant:
            np.testing.assert_array_equal(loaded.graph.values[name].data, value.data)


def test_read_digest_covers_external_data(external):
    before = load_model(external).digest
    data = bytearray((external.parent / "weights.bin").read_bytes())
    data[-1] ^= 1
    (external.parent / "weights.bin").write_bytes(data)
    assert load_model(external).digest != before


def test_read_names_file_and_tensor_when_external_data_is_missing(external):
    (external.parent / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"tensor 'w_\d+': file 'weights.bin' is missing"):
        load_model(external)


def test_read_rejects_external_data_that_is_too_short(external):
    data = (external.parent / "weights.bin").read_bytes()
    (external.parent / "weights.bin").write_bytes(data[:-8])
    with pytest.raises(ModelError, match="is too short"):
        load_model(external)


@pytest.mark.parametrize(
    "location", ["../weights.bin", "/etc/hostname", "sub/../../weights.bin", "..\\weights.bin", "C:\\w"]
)
def test_read_rejects_external_data_outside_the_folder(location, external):
    (external.parent.parent / "weights.bin").write_bytes((external.parent / "weights.bin").read_bytes())
    edit_entry(external, "location", location)
    with pytest.raises(ModelError, match="outside the model's folder"):
        load_model(external)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_read_rejects_external_data_behind_a_symbolic_link(kind, external):
    outside = external.parent.parent / "outside"
    outside.mkdir()
    (external.parent / "weights.bin").rename(outside / "weights.bin")
    if kind == "file":
        (external.parent / "weights.bin").symlink_to(outside / "weights.bin")
    else:
        (external.parent / "sub").symlink_to(outside)
        edit_entry(external, "location", "sub/weights.bin")
    with pytest.raises(ModelError, match="symbolic link"):
        load_model(external)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("offset", "-4", "negative offset"),
        ("offset", "99999999999999999999", "too short"),
        ("offset", "many", "no number"),
        ("length", "4", "shape needs"),
        ("length", "-1", "shape needs"),
        ("location", "", "names no file"),
        ("location", "a\0b", "names no file"),
        ("location", ".", "not a regular file"),
    ],
)
def test_read_rejects_external_data_entry(key, value, message, external):
    edit_entry(external, key, value)
    with pytest.raises(ModelError, match=message):
        load_model(external)


def test_read_rejects_negative_dimension_of_external_tensor(external):
    model = onnx.load(external, load_external_data=False)
    model.graph.initializer[0].dims[0] = -1
    external.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="negative dimension"):
        load_model(external)


def test_read_rejects_a_device_as_external_data(external):
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    (external.parent / "weights.bin").unlink()
    os.mkfifo(external.parent / "weights.bin")
    with pytest.raises(ModelError, match="not a regular file"):
        load_model(external)


def test_read_rejects_names_that_are_no_utf8(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp().model().SerializeToString().replace(b"logits", b"l\xffgits"))
    with pytest.raises(ModelError, match="no UTF-8"):
        load_model(path)


def test_read_escapes_control_characters_in_messages(tmp_path):
    builder = mlp()
    builder.op("Nonsense", "logits", name="bad\x1b[31m\n\u202elayer")
    path = tmp_path / "m.onnx"
    model = builder.output().model()
    onnx.save(model, path)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert "bad\\x1b[31m\\n\\u202elayer" in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("seed", range(4))
def test_load_raises_only_its_own_errors_when_bytes_are_damaged(seed, tmp_path):
    rng = random.Random(seed)
    build = (mlp, conv_net, mobile_net, bert)[seed]
    content = build(sparsity=0.0, **({"sizes": (4, 6, 3)} if build is mlp else {})).model().SerializeToString()
    path = tmp_path / "m.onnx"
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 2, 4))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.2:
            start = rng.randrange(len(damaged))
            del damaged[start : start + rng.randrange(1, 9)]
        path.write_bytes(damaged)
        try:
            canonicalize(load_model(path).graph)
        except SparseTvmError as error:
            assert error.message  # noqa: PT017 - both outcomes are fine


def test_load_rejects_strings(tmp_path):
    builder = mlp()
    builder.input("text", (1, 2), TensorProto.STRING)
    path = builder.save(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="input 'text' holds strings"):
        load_model(path)
