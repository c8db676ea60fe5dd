"""Every published weakness of ONNX's external data and parsing that a reader can have, and others of their kind.

Each is refused as a ModelError (exit code 3) in under a second and little memory, and nothing outside the model's
folder is opened.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from audit import audited, opened
from models import ModelBuilder, mlp
from onnx import TensorProto, helper

from sparsetvm.errors import ModelError
from sparsetvm.frontend import limits
from sparsetvm.frontend.load import load_model
from sparsetvm.frontend.read import read_model
from sparsetvm.frontend.transfer import load_limited

SECRET = b"secret!!" * 8  # as large as the tensor
SECONDS, MEGABYTES = 1.0, 100  # that refusing one takes at most: CPU time, growth of the largest resident set


def small_model(*initializers: onnx.TensorProto, nodes: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    """y = x + w, with w of 4 x 4."""
    graph = helper.make_graph(
        nodes or [helper.make_node("Add", ["x", "w"], ["y"], name="layer")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])],
        list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def external(name: str = "w", **entries: str) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key.removesuffix("_again"), value=value)
    return tensor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The model's folder, with good data in it and a secret beside it."""
    (tmp_path / "secret.bin").write_bytes(SECRET)
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "model" / "w.bin").write_bytes(bytes(64))
    return tmp_path / "model"


def refused(folder: Path, model: onnx.ModelProto, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    monkeypatch.chdir(folder.parent)  # what is looked for in the current folder must not be found there either
    before = resource.getrusage(resource.RUSAGE_SELF)
    with audited() as events, pytest.raises(ModelError, match=match) as caught:
        load_model(path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS
    assert after.ru_maxrss - before.ru_maxrss < MEGABYTES << 10
    assert caught.value.exit_code == 3
    assert "\n" not in caught.value.message
    for name, flags in opened(events):
        whole = os.path.join(folder, name)
        inside = Path(whole).parent == folder or Path(whole) == folder or Path(whole) == folder / "sub"
        assert inside, f"opened {name}"
        assert flags & os.O_NOFOLLOW or name in (str(path), str(folder)), f"followed {name}"


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "sub/../../secret.bin", "./../secret.bin", "sub/../sub/../../secret.bin", "sub/..", "..",
     "..\\secret.bin", "sub\\..\\..\\secret.bin"],
)  # fmt: skip
def test_external_data_never_leaves_the_folder_by_a_relative_path(location, folder, monkeypatch):
    """CVE-2022-25882, and CVE-2024-27318 that went around its repair with a path inside a path."""
    refused(folder, small_model(external(location=location)), "outside the model's folder", monkeypatch)


@pytest.mark.parametrize("location", ["/etc/hostname", "//etc/hostname", "C:\\w.bin", "C:w.bin", "\\\\host\\share\\w"])
def test_external_data_never_leaves_the_folder_by_an_absolute_path(location, folder, monkeypatch):
    """Part of CVE-2022-25882; drive letters as in CVE-2025-51480's repair."""
    refused(folder, small_model(external(location=location)), "outside the model's folder", monkeypatch)


def test_external_data_never_leaves_the_folder_by_the_full_path_of_a_good_file(folder, monkeypatch):
    location = str(folder / "w.bin")
    refused(folder, small_model(external(location=location)), "outside the model's folder", monkeypatch)


def test_external_data_is_not_reached_through_a_symbolic_link(folder, monkeypatch):
    """CVE-2026-27489."""
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    refused(folder, small_model(external(location="link.bin")), "symbolic link", monkeypatch)


def test_external_data_is_not_reached_through_a_linked_folder(folder, monkeypatch):
    """CVE-2026-34447: only the last part of the path was looked at."""
    (folder / "linked").symlink_to(folder.parent)
    refused(folder, small_model(external(location="linked/secret.bin")), "symbolic link", monkeypatch)


def test_external_data_is_no_hard_link(folder, monkeypatch):
    """CVE-2026-34446."""
    os.link(folder.parent / "secret.bin", folder / "hard.bin")
    refused(folder, small_model(external(location="hard.bin")), "hard link", monkeypatch)


def test_external_data_that_becomes_a_link_after_the_check_is_not_followed(folder, monkeypatch):
    """What is read is the descriptor that was checked: no time between check and use."""
    path = folder / "m.onnx"
    path.write_bytes(small_model(external(location="w.bin")).SerializeToString())
    real = os.fstat

    def exchange(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        (folder / "w.bin").unlink(missing_ok=True)
        (folder / "w.bin").symlink_to(folder.parent / "secret.bin")
        return status

    monkeypatch.setattr(os, "fstat", exchange)
    proto = read_model(path).proto
    monkeypatch.undo()
    assert proto.graph.initializer[0].raw_data == bytes(64)


@pytest.mark.parametrize("key", ["__class__", "__init__", "file", "basepath", "offset ", "LOCATION", "\x1b[2J"])
def test_external_data_with_an_unknown_key_is_refused(key, folder, monkeypatch):
    """CVE-2026-34445: keys were set as attributes of an object."""
    tensor = external(location="w.bin")
    tensor.external_data.add(key=key, value="1")
    refused(folder, small_model(tensor), "is not known", monkeypatch)


def test_external_data_with_a_key_given_twice_is_refused(folder, monkeypatch):
    tensor = external(location="w.bin", location_again="sub/w.bin")
    refused(folder, small_model(tensor), "given twice", monkeypatch)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"offset": "-1"}, "negative offset"),
        ({"offset": "-9223372036854775808"}, "negative offset"),
        ({"offset": "9223372036854775807"}, "too short"),
        ({"offset": "18446744073709551552"}, "too short"),  # plus 64 it is 0 in 64 bits
        ({"offset": "1"}, "too short"),
        ({"offset": "0x10"}, "no number"),
        ({"offset": "1_0"}, "no number"),
        ({"offset": "\u0661"}, "no number"),  # a digit of another script
        ({"offset": "9" * 5000}, "no number"),
        ({"length": "-1"}, "shape needs 64"),
        ({"length": "0"}, "shape needs 64"),
        ({"length": "1125899906842624"}, "shape needs 64"),
        ({"length": "nan"}, "no number"),
    ],
)
def test_external_data_with_an_impossible_offset_or_length_is_refused(entries, match, folder, monkeypatch):
    """The other half of CVE-2026-34445: lengths that made a reader allocate whatever they said."""
    refused(folder, small_model(external(location="w.bin", **entries)), match, monkeypatch)


@pytest.mark.parametrize(
    "dims", [[1 << 50], [1 << 32, 1 << 32], [1 << 62, 4], [-1, 16], [1 << 20, 1 << 20, 1 << 20], [5, 4]]
)
def test_external_tensor_that_claims_more_than_its_file_holds_is_refused(dims, folder, monkeypatch):
    tensor = external(location="w.bin")
    tensor.dims[:] = dims
    refused(folder, small_model(tensor), "too short|negative dimension", monkeypatch)


def test_external_data_of_a_sparse_file_is_bounded_by_the_memory_limit(folder):
    """A file of a few bytes on the disk can be terabytes long."""
    with open(folder / "w.bin", "wb") as file:
        file.truncate(1 << 43)
    tensor = external(location="w.bin")
    tensor.dims[:] = [1 << 20, 1 << 20]
    (folder / "m.onnx").write_bytes(small_model(tensor).SerializeToString())
    with pytest.raises(ModelError, match="memory"):
        load_limited(folder / "m.onnx")


@pytest.mark.parametrize("place", ["attribute", "list", "sparse", "function", "default", "training"])
def test_external_data_is_checked_wherever_a_tensor_can_be(place, folder, monkeypatch):
    """onnx itself resolves what a reader forgot, and then from the current folder."""
    tensor = external("w", location="../secret.bin")
    model = small_model(helper.make_tensor("w", TensorProto.FLOAT, [4, 4], [0.0] * 16))
    attribute = model.graph.node[0].attribute.add(name="a")
    if place == "attribute":
        attribute.t.CopyFrom(tensor)
    elif place == "list":
        attribute.tensors.append(tensor)
    elif place == "sparse":
        model.graph.sparse_initializer.add().indices.CopyFrom(tensor)
    elif place == "function":
        model.functions.add(name="f").node.add(op_type="Constant").attribute.add(name="value").t.CopyFrom(tensor)
    elif place == "default":
        model.functions.add(name="f").attribute_proto.add(name="value").t.CopyFrom(tensor)
    else:
        model.training_info.add().algorithm.initializer.append(tensor)
    refused(folder, model, "outside the model's folder", monkeypatch)


# ---- what is in the file itself ----


@pytest.mark.parametrize(
    ("dims", "data"),
    [([4, 4], 63), ([4, 4], 65), ([4, 4], 0), ([1 << 50], 64), ([1 << 32, 1 << 32], 0), ([1 << 31, 1 << 31, 4], 0),
     ([-4, -4], 64), ([1 << 62, 4], 0), ([0, 1 << 62], 64)],
)  # fmt: skip
def test_tensor_whose_bytes_do_not_match_its_shape_is_refused(dims, data, folder, monkeypatch):
    """Sizes that overflow 64 bits are among them: 2^32 x 2^32 is 0 there, and so is the number of bytes."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(data))
    refused(folder, small_model(tensor), "damaged|negative dimension", monkeypatch)


@pytest.mark.parametrize(
    "kind", ["FLOAT", "INT4", "UINT2", "INT8", "DOUBLE", "FLOAT16", "COMPLEX64", "BOOL", "FLOAT6E2M3"]
)
def test_tensor_of_few_numbers_that_claims_petabytes_is_refused(kind, folder, monkeypatch):
    tensor = TensorProto(name="w", data_type=TensorProto.DataType.Value(kind), dims=[1 << 50])
    tensor.int32_data.extend([1, 2, 3])
    refused(folder, small_model(tensor), "damaged", monkeypatch)


@pytest.mark.parametrize("kind", [0, 8, 99, -1, 1 << 30])
def test_tensor_of_an_unknown_type_is_refused(kind, folder, monkeypatch):
    model = small_model(TensorProto(name="w", data_type=kind, dims=[4, 4], raw_data=bytes(64)))
    refused(folder, model, "type|strings|numbers|damaged", monkeypatch)


def test_file_of_a_hundred_bytes_that_claims_petabytes_takes_no_memory(folder):
    """Through sparse tensors, inputs and operators, whose sizes no data backs; in the child as a command does it."""
    sparse = onnx.SparseTensorProto(dims=[1 << 16, 1 << 15])
    sparse.values.CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]))
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [1], [3]))
    first = small_model()
    first.graph.sparse_initializer.append(sparse)
    second = small_model(helper.make_tensor("w", TensorProto.FLOAT, [4, 4], [0.0] * 16))
    second.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 55
    shape = helper.make_tensor("s", TensorProto.INT64, [3], [1 << 30, 4, 4])
    third = small_model(shape, nodes=[helper.make_node("Expand", ["x", "s"], ["y"])])
    for model in (first, second, third):
        (folder / "m.onnx").write_bytes(model.SerializeToString())
        assert len(model.SerializeToString()) < 200
        if model is third:
            third.graph.initializer[0].CopyFrom(helper.make_tensor("s", TensorProto.INT64, [3], [1 << 50, 4, 4]))
            (folder / "m.onnx").write_bytes(third.SerializeToString())
        with pytest.raises(ModelError, match="memory"):
            load_limited(folder / "m.onnx")


def test_vector_of_integers_that_claims_gigabytes_takes_no_memory(folder):
    """Found by fuzzing: onnx's shape inference made up a symbol for each of its elements."""
    model = small_model(nodes=[helper.make_node("Add", ["x", "x"], ["y"])])
    for info in (model.graph.input[0], model.graph.output[0]):
        info.CopyFrom(helper.make_tensor_value_info(info.name, TensorProto.UINT4, [1 << 31]))
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    begun = time.process_time()
    assert load_model(folder / "m.onnx").graph.values["y"].shape == (1 << 31,)
    assert time.process_time() - begun < 1


def test_constants_that_grow_while_they_are_folded_are_bounded_by_the_memory_limit(folder, monkeypatch):
    """Each of them is small enough to be folded; all together are not."""
    monkeypatch.setattr(limits, "_MEMORY", 1 << 27)
    monkeypatch.setattr(limits, "_MEMORY_PER_CORE", 0)
    names = [f"c{i}" for i in range(400)]
    nodes = [helper.make_node("ConstantOfShape", ["s"], [name]) for name in names]
    nodes.append(helper.make_node("Sum", ["x", *names], ["y"]))
    model = small_model(helper.make_tensor("s", TensorProto.INT64, [3], [1 << 20, 4, 4]), nodes=nodes)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="memory"):
        load_limited(folder / "m.onnx")


def function(name: str, *calls: str) -> onnx.FunctionProto:
    """A function of one argument that calls others one after the other."""
    names = ["a", *(f"v{i}" for i in range(len(calls) - 1)), "b"]
    nodes = [
        helper.make_node(call, [names[i]], [names[i + 1]], domain="" if call == "Relu" else "local")
        for i, call in enumerate(calls)
    ]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, ["a"], ["b"], nodes, imports)


def calling(*functions: onnx.FunctionProto) -> onnx.ModelProto:
    model = small_model(nodes=[helper.make_node(functions[0].name, ["x"], ["y"], domain="local")])
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.functions.extend(functions)
    return model


def test_functions_are_inlined(folder):
    path = folder / "m.onnx"
    path.write_bytes(calling(function("F", "G", "G"), function("G", "Relu", "Relu")).SerializeToString())
    assert [node.op for node in load_model(path).graph.nodes] == ["Relu"] * 4


@pytest.mark.parametrize("functions", [[("F", "F")], [("F", "G"), ("G", "Relu", "H"), ("H", "F")]])
def test_functions_that_call_themselves_are_refused(functions, folder, monkeypatch):
    refused(folder, calling(*(function(*names) for names in functions)), "calls itself", monkeypatch)


def test_functions_that_would_make_billions_of_nodes_are_refused(folder, monkeypatch):
    """A billion laughs: 40 functions that each call the next one twice."""
    functions = [function(f"F{i}", f"F{i + 1}", f"F{i + 1}") for i in range(40)] + [function("F40", "Relu")]
    refused(folder, calling(*functions), "functions would make about 10.12 nodes", monkeypatch)


def test_functions_nested_too_deeply_are_refused(folder, monkeypatch):
    functions = [function(f"F{i}", f"F{i + 1}") for i in range(5000)] + [function("F5000", "Relu")]
    refused(folder, calling(*functions), "nested more than", monkeypatch)


def test_function_that_reads_what_nobody_computes_is_refused(folder, monkeypatch):
    """Found by fuzzing: the version converter inside of the inliner has an error of its own."""
    broken = function("F", "Relu")
    broken.node[0].input[0] = "nobody"
    broken.opset_import[0].version = 13
    refused(folder, calling(broken), "cannot be inlined|no earlier node", monkeypatch)


def test_function_operator_without_its_inputs_is_refused(folder, monkeypatch):
    """Found by fuzzing: the inliner infers the shapes of inputs that are not there."""
    nodes = [helper.make_node("LayerNormalization", [], ["y"]), helper.make_node("Bernoulli", ["x"], ["z"])]
    refused(folder, small_model(nodes=nodes), "not a valid LayerNormalization", monkeypatch)


def nested(depth: int) -> bytes:
    """If in If, written without the library, which refuses to write what is too deep."""

    def field(number: int, body: bytes) -> bytes:
        size, encoded = len(body), b""
        while size > 127:
            encoded, size = encoded + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + encoded + bytes([size]) + body

    graph = b""
    for _ in range(depth):
        graph = field(
            1, field(4, b"If") + field(1, b"c") + field(2, b"y") + field(5, field(1, b"then_branch") + field(6, graph))
        )
    return field(7, graph)


@pytest.mark.parametrize("depth", [40, 1000, 4000])
def test_deeply_nested_graphs_are_refused(depth, folder):
    (folder / "m.onnx").write_bytes(nested(depth))
    with pytest.raises(ModelError):
        load_model(folder / "m.onnx")


def test_attributes_of_the_wrong_kind_crash_nothing(folder, monkeypatch):
    """CVE-2024-27319: a message of the checker was built past the end of a buffer."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="x" * 1000)
    node.attribute.add(name="kernel_shape", type=onnx.AttributeProto.STRING, s=b"\xff" * 5000)
    model = small_model(helper.make_tensor("w", TensorProto.FLOAT, [4, 4], [0.0] * 16), nodes=[node])
    refused(folder, model, "not a valid Conv", monkeypatch)


def test_product_downloads_no_models():
    """CVE-2024-5187, CVE-2024-7776 (archives of downloaded models), CVE-2026-28500 (onnx.hub): none of it is used."""
    source = Path(__file__).parents[2] / "sparsetvm"
    for path in source.rglob("*.py"):
        text = path.read_text()
        for word in (
            "onnx.hub",
            "import hub",
            "download_model",
            "tarfile",
            "urllib",
            "import requests",
            "save_external_data",
        ):
            assert word not in text, f"{path}: {word}"


# ---- names ----

NAMES = {
    "control characters": "a\x1b[2J\x1b]0;title\x07\r\x08b",
    "lines": "a\n  next step: do something stupid",
    "direction": "a\u202etxt.exe",
    "markup": "<script>alert(1)</script>&[bold red]x[/]",
    "paths": "../../../../tmp/a/b\\c:d",
    "shell": "$(touch owned); `id` | & > file",
    "format": "{0.__class__} %s %n",
    "nothing": " ",
    "long": "n" * 10_000,
    "emoji": "\U0001f600\u0301",
}


def named_model(name: str, path: Path) -> Path:
    builder = ModelBuilder()
    x = builder.input("x", (1, 16))
    weight = builder.const(builder.weight((16, 16), 16, 0.5), name)
    builder.op("MatMul", x, weight, name=name, out=name)
    builder.op("MatMul", name, weight, name=name, out="y")
    onnx.save(builder.output("y").model(), path)
    return path


@pytest.mark.parametrize("kind", NAMES)
def test_inspect_prints_no_control_characters_of_names(kind, tmp_path, capsys):
    from click.testing import CliRunner

    from sparsetvm.cli.main import cli

    path = named_model(NAMES[kind], tmp_path / "m.onnx")
    result = CliRunner().invoke(cli, ["inspect", str(path), "--json", str(tmp_path / "r.json")])
    assert result.exit_code == 0, result.output
    assert all(c.isprintable() or c == "\n" for c in result.output)
    assert len(result.output) < 5000
    report = (tmp_path / "r.json").read_text()
    assert all(c.isprintable() or c == "\n" for c in report.replace("\u202e", ""))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "r.json"]


@pytest.mark.parametrize("kind", NAMES)
def test_errors_print_no_control_characters_of_names(kind, tmp_path):
    name = NAMES[kind]
    error = ModelError(f"'{name[:50]}' is bad", layer=name, hint=name[:50])
    assert all(c.isprintable() or c == "\n" for c in str(error))
    assert len(str(error)) < 700


def test_equal_names_become_different_layers(tmp_path):
    builder = mlp()
    for node in builder.nodes:
        node.name = "same"
    graph = load_model(builder.save(tmp_path / "m.onnx")).graph
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)


def test_tensors_are_read_right_from_data_files_in_folders_below(folder):
    """What is allowed still works: a file in a folder below, an offset, a checksum, a type with packed elements."""
    data = np.arange(20, dtype=np.float32)
    (folder / "sub" / "data.bin").write_bytes(data.tobytes())
    tensor = external(location="sub/data.bin", offset="16", length="64", checksum="0" * 40)
    packed = external("p", location="w.bin", offset="3")
    packed.data_type, packed.dims[:] = TensorProto.INT4, [3, 3]
    model = small_model(tensor, packed)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    read = read_model(folder / "m.onnx").proto
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(read.graph.initializer[0]).ravel(), data[4:])
    assert len(read.graph.initializer[1].raw_data) == 5
