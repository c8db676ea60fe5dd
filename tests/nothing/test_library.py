"""`inspect` of a compiled library: told by its manifest, without loading it."""

import json

import pytest
from click.testing import CliRunner

from sparsetvm.cli.main import cli
from sparsetvm.core.library import describe_library, is_library
from sparsetvm.core.manifest import manifest_path, sha256_of
from sparsetvm.errors import ModelError, UsageError

LAYER = {
    "name": "conv1", "workload": "conv2d 3x3 64->64 8x8", "workload_id": "w", "pattern": "unstructured",
    "sparsity": 0.9,
    "config": "Config.of('x86.pattern_code', rows=28)", "arithmetic": "float32", "source": "tuned", "why": "fastest",
    "best_us": 10.0, "dense_us": 42.0, "speedup": 4.2,
}  # fmt: skip
TENSOR = {"name": "x", "shape": [1, 3], "dtype": "float32"}


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "m.so"
    path.write_bytes(b"\x7fELF and no more")
    return path


def write(library, **changes):
    manifest = {
        "schema": 1, "sparsetvm": "0.1.0", "tvm": "0.27", "library_sha256": sha256_of(library), "threads": 2,
        "model": {"name": "m.onnx"}, "inputs": [TENSOR], "outputs": [TENSOR], "layers": [LAYER], "kernels": [{}, {}],
    }  # fmt: skip
    manifest_path(library).write_text(json.dumps({**manifest, **changes}))


def test_report_has_layers_tensors_and_versions(library):
    write(library)
    report = describe_library(library)
    assert (report.model, report.threads, report.kernels, report.bytes) == ("m.onnx", 2, 2, 16)
    assert report.versions == {"sparsetvm": "0.1.0", "tvm": "0.27"}
    assert report.inputs == [TENSOR]
    assert (report.layers[0].name, report.layers[0].speedup) == ("conv1", 4.2)


def test_inspect_prints_a_library_within_100_columns(library):
    write(library, layers=[{**LAYER, "name": "n" * 200}, {"name": "b\x1b[31m"}])
    result = CliRunner().invoke(cli, ["inspect", str(library)])
    assert result.exit_code == 0, result.output
    table = [line for line in result.stdout.splitlines()[1:] if not line.startswith("next: ")]
    assert max(map(len, table)) <= 100
    assert "x86.pattern_code" in result.stdout
    assert "4.20x" in result.stdout
    assert "\x1b" not in result.stdout
    assert f"next: sparsetvm bench {library} --per-layer" in result.stdout


def test_json_has_the_same(library):
    write(library)
    result = CliRunner().invoke(cli, ["inspect", str(library), "--json", "-"])
    assert json.loads(result.stdout)["layers"][0]["config"] == LAYER["config"]


def test_library_without_manifest_says_what_to_copy(library):
    with pytest.raises(UsageError, match="no manifest") as caught:
        describe_library(library)
    assert "m.so.json" in str(caught.value.hint)


@pytest.mark.parametrize("layers", [3, [3], [{}], [{"name": 5}], [{"name": "a", "best_us": "1"}]])
def test_hostile_layers_are_a_model_error(library, layers):
    write(library, layers=layers)
    with pytest.raises(ModelError, match="damaged"):
        describe_library(library)


def test_models_are_no_libraries(library, tmp_path):
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert is_library(library)
    assert not is_library(tmp_path / "empty.onnx")
