"""What the runtime reads from a manifest, and what it refuses."""

import json
from pathlib import Path

import onnx
import pytest
from audit import audited, opened
from hypothesis import given
from hypothesis import strategies as st
from models import mlp

from sparsetvm.core.manifest import ModelInfo, Signature, manifest_path, read_manifest, sha256_of
from sparsetvm.errors import ModelError, UsageError
from sparsetvm.frontend.load import load_model
from sparsetvm.runtime import bench
from sparsetvm.runtime import module as module_room
from sparsetvm.runtime.module import Module
from sparsetvm.runtime.verify import onnxruntime_session


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "m.so"
    path.write_bytes(b"library")
    return path


def document(library, **changes):
    inputs = [{"name": "x", "shape": [1, 4], "dtype": "float32"}]
    fields = {"schema": 1, "library_sha256": sha256_of(library), "inputs": inputs, "outputs": [], "threads": 2}
    return {**fields, **changes}


def write(library, content):
    manifest_path(library).write_text(content if isinstance(content, str) else json.dumps(content))


def test_no_manifest_is_none(library):
    assert read_manifest(library) is None


def test_manifest_gives_the_signature_and_keeps_all_keys(library):
    write(library, document(library, layers=[{"name": "conv1"}]))
    manifest, signature = read_manifest(library)
    assert manifest["layers"] == [{"name": "conv1"}]
    assert (signature.inputs[0].name, signature.inputs[0].shape, signature.threads) == ("x", (1, 4), 2)


def test_changed_library_is_refused(library):
    write(library, document(library))
    library.write_bytes(b"other code")
    with pytest.raises(ModelError, match="SHA-256 differs"):
        read_manifest(library)


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_other_schema_is_refused(library, schema):
    write(library, document(library, schema=schema))
    with pytest.raises(ModelError, match="schema"):
        read_manifest(library)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"schema": 1}', '{"schema": 1, "library_sha256": "", "inputs": {}, "outputs": []}'],
)
def test_damaged_manifest_is_a_model_error(library, content):
    write(library, content)
    with pytest.raises(ModelError, match="manifest"):
        read_manifest(library)


@given(content=st.binary(max_size=200))
def test_no_content_breaks_the_reader(tmp_path_factory, content):
    library = tmp_path_factory.mktemp("m") / "m.so"
    library.write_bytes(b"library")
    manifest_path(library).write_bytes(content)
    with pytest.raises(ModelError):
        read_manifest(library)


TENSOR = {"name": "x", "shape": [1, 4], "dtype": "float32"}
TARGET = {"kind": "cpu", "mcpu": "znver5", "isa": "avx512"}


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": [{**TENSOR, "dtype": "object"}]},
        {"inputs": [{**TENSOR, "dtype": "O8"}]},
        {"inputs": [{**TENSOR, "shape": [1 << 30, 1 << 30]}]},
        {"outputs": [{**TENSOR, "shape": [-4]}]},
        {"inputs": [{**TENSOR, "shape": ["4"]}]},
        {"threads": 0},
        {"threads": 1 << 40},
        {"target": []},
        {"target": {"kind": "cuda"}},
        {"target": {**TARGET, "kind": "ext_dev"}},
        {"target": {**TARGET, "device": -1}},
        {"model": "../m.onnx"},
        {"tolerances": {"rel_l2_error": 1e9}},
        {"tolerances": {"rel_l2_error": -1}},
        {"tolerances": [1]},
    ],
)
def test_manifest_of_impossible_values_is_refused(library, changes):
    write(library, document(library, **changes))
    with pytest.raises(ModelError, match="is damaged"):
        read_manifest(library)


def test_library_of_another_manifest_is_refused_before_any_of_it_is_loaded(library, monkeypatch):
    """What is loaded has run already: the digest has to be looked at first."""
    write(library, document(library, library_sha256="0" * 64))
    monkeypatch.setattr(module_room, "_load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ModelError, match="SHA-256 differs"):
        Module(library)


class Loaded:
    """What `bench` asks a module for."""

    def __init__(self, path, **model):
        self.path = path
        self.signature = Signature(1, "", [], [], model=ModelInfo(**model))


@pytest.mark.parametrize("name", ["/etc/hostname", "../m.onnx", "sub/m.onnx", "..", ".", "", "/dev/zero"])
def test_manifest_makes_bench_open_no_path(tmp_path, name):
    (tmp_path / "m.onnx").write_bytes(b"beside the folder")
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    with audited() as events, pytest.raises(UsageError, match="--reference"):
        bench._recorded(Loaded(tmp_path / "folder" / "m.so", name=name))
    assert not [path for path, _ in opened(events) if not path.endswith((".py", ".pyc", ".so"))]


def test_bench_takes_the_model_of_the_manifest_only_with_its_digest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = mlp().save(tmp_path / "m.onnx")
    digest = load_model(path).digest
    assert bench._recorded(Loaded(tmp_path / "m.so", name="m.onnx", sha256=digest)) == path
    assert bench._recorded(Loaded(tmp_path / "a" / "m.so", name="m.onnx", sha256=digest)) == Path("m.onnx")
    with pytest.raises(UsageError, match="has changed since"):
        bench._recorded(Loaded(tmp_path / "m.so", name="m.onnx", sha256="0" * 64))
    with pytest.raises(UsageError, match="neither beside it"):
        bench._recorded(Loaded(tmp_path / "m.so", name="n.onnx", sha256=digest))


def test_onnxruntime_is_not_given_a_model_that_our_reader_refuses(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(mlp().model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").rename(tmp_path / "other.bin")
    (tmp_path / "weights.bin").symlink_to(tmp_path / "other.bin")
    with pytest.raises(ModelError, match="symbolic link"):
        onnxruntime_session(path, 1)
