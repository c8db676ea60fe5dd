"""What the runtime reads from a manifest, and what it refuses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsetvm.core.manifest import manifest_path, read_manifest, sha256_of
from sparsetvm.errors import ModelError


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
