"""The child process that parses models: what it may use, and what becomes of it when it does more."""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from models import bert, conv_net, mobile_net

from sparsetvm.errors import EnvironmentProblem, ModelError, NoCandidateError, UsageError
from sparsetvm.frontend import limits
from sparsetvm.frontend.child import Parcel, in_child
from sparsetvm.frontend.load import load_model
from sparsetvm.frontend.transfer import load_limited


def echo(value: object) -> Parcel:
    return Parcel(value, [np.arange(5.0), np.zeros((0, 3), np.int8), np.float32(7).reshape(())])


def allocate(size: int) -> Parcel:
    return Parcel(len(bytearray(size)))


def write(path: str) -> Parcel:
    Path(path).write_bytes(b"x")
    return Parcel(None)


def read_limits() -> Parcel:
    names = ("RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_NOFILE", "RLIMIT_CPU")
    return Parcel({name: resource.getrlimit(getattr(resource, name))[0] for name in names})


def open_descriptors() -> Parcel:
    return Parcel(len(os.listdir("/proc/self/fd")))


def kill_itself(number: int) -> Parcel:
    os.kill(os.getpid(), number)
    return Parcel(None)


def leave() -> Parcel:
    os._exit(3)


def spin() -> Parcel:
    while True:
        pass


def use_recursion(depth: int) -> Parcel:
    return use_recursion(depth + 1)


def reject(layer: str) -> Parcel:
    raise NoCandidateError("no", layer=layer, hint="else")


def break_down() -> Parcel:
    raise KeyError("a bug")


@pytest.fixture
def _fork() -> None:
    """For tests that patch this process: only a fork has the patch, and with threads there is none."""
    if threading.active_count() > 1:
        pytest.skip("this process has threads: it does not fork")


@pytest.fixture(params=["fork", "interpreter"])
def _both(request: pytest.FixtureRequest) -> Iterator[None]:
    """A fork where this is the only thread, an interpreter of its own where it is not."""
    if request.param == "fork":
        if threading.active_count() > 1:
            pytest.skip("this process has threads: it does not fork")
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield
    done.set()
    thread.join()


@pytest.mark.usefixtures("_both")
def test_child_sends_values_and_arrays():
    value = {"a": [1, 2.5, float("inf"), None, True, "\u202e\n"]}
    parcel = in_child(echo, value, size=0)
    assert parcel.value == {"a": [1, 2.5, float("inf"), None, True, "\u202e\n"]}
    np.testing.assert_array_equal(parcel.arrays[0], np.arange(5.0))
    assert [(a.shape, str(a.dtype)) for a in parcel.arrays[1:]] == [((0, 3), "int8"), ((), "float32")]


@pytest.mark.usefixtures("_both")
def test_child_has_limits_and_no_descriptors_of_ours(tmp_path):
    with open(tmp_path / "ours", "wb"):
        found = in_child(read_limits, size=8 << 20).value
        assert found == {"RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": 64, "RLIMIT_CPU": 122}
        assert in_child(open_descriptors, size=0).value == 5  # three streams, the pipe, the folder that is listed


def test_child_can_write_no_file(tmp_path):
    with pytest.raises((ModelError, RuntimeError)):
        in_child(write, str(tmp_path / "new"), size=0)
    assert not (tmp_path / "new").exists() or not (tmp_path / "new").read_bytes()


@pytest.mark.usefixtures("_both")
def test_child_that_takes_too_much_memory_rejects_the_model():
    with pytest.raises(ModelError, match="memory"):
        in_child(allocate, 1 << 50, size=0)


@pytest.mark.usefixtures("_fork")
def test_child_may_take_more_memory_for_a_larger_file(monkeypatch):
    monkeypatch.setattr(limits, "_MEMORY", 64 << 20)
    monkeypatch.setattr(limits, "_MEMORY_PER_CORE", 0)
    with pytest.raises(ModelError, match="memory"):
        in_child(allocate, 256 << 20, size=0)
    assert in_child(allocate, 256 << 20, size=32 << 20).value == 256 << 20


def test_child_that_takes_too_long_rejects_the_model(monkeypatch):
    monkeypatch.setattr(limits, "_CPU_SECONDS", 1)
    with pytest.raises(ModelError, match="takes more than 1 seconds"):
        in_child(spin, size=0)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_child_that_crashes_rejects_the_model(number):
    with pytest.raises(ModelError, match=f"crashes the libraries.*{signal.Signals(number).name}"):
        in_child(kill_itself, int(number), size=0)


@pytest.mark.usefixtures("_both")
def test_child_that_is_killed_is_no_fault_of_the_model():
    with pytest.raises(EnvironmentProblem, match="was killed") as caught:
        in_child(kill_itself, int(signal.SIGKILL), size=0)
    assert caught.value.exit_code == 4


def test_child_that_ends_without_an_answer_rejects_the_model():
    with pytest.raises(ModelError, match="no signal"):
        in_child(leave, size=0)


@pytest.mark.usefixtures("_both")
def test_child_hands_on_errors_as_they_are():
    with pytest.raises(NoCandidateError) as caught:
        in_child(reject, "conv\n1", size=0)
    assert (caught.value.message, caught.value.layer, caught.value.hint) == ("no", "conv\n1", "else")


@pytest.mark.usefixtures("_both")
def test_child_hands_on_the_traceback_of_a_bug():
    with pytest.raises(RuntimeError, match=r"(?s)in the process that reads models.*break_down.*KeyError: 'a bug'"):
        in_child(break_down, size=0)


def test_child_leaves_no_process_and_no_descriptor_behind():
    before = os.listdir("/proc/self/fd")
    in_child(echo, 1, size=0)
    with pytest.raises(ModelError):
        in_child(leave, size=0)
    with pytest.raises(NoCandidateError):
        in_child(reject, "x", size=0)
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_child_is_killed_when_the_caller_is_interrupted(monkeypatch):
    from sparsetvm.frontend import child

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(child, "_receive", interrupted)
    monkeypatch.setattr(child, "_STOP_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        in_child(spin, size=0)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.usefixtures("_fork")
@pytest.mark.parametrize(
    "said",
    [b"", b"\xff" * 8, b"\x01" + bytes(7) + b"\xc1", b"\x02" + bytes(7) + b"\x81\xa0", bytes(8), b"\x01" + bytes(7)],
)
def test_nonsense_from_the_child_rejects_the_model(said, monkeypatch):
    """A parser that somebody took over may say anything."""
    from sparsetvm.frontend import child

    monkeypatch.setattr(child, "_serve", lambda *arguments: os.write(arguments[-1], said))
    with pytest.raises(ModelError):
        in_child(echo, 1, size=0)


@pytest.mark.parametrize("build", [conv_net, mobile_net, bert])
def test_model_from_the_child_equals_the_model_loaded_here(build, tmp_path):
    path = build(batch="N").save(tmp_path / "m.onnx")
    here, there = load_model(path), load_limited(path)
    assert there.path == here.path
    assert (there.digest, there.notes, there.symbolic) == (here.digest, here.notes, here.symbolic)
    ours, theirs = here.graph, there.graph
    assert (ours.name, ours.opset, ours.inputs, ours.outputs) == (
        theirs.name,
        theirs.opset,
        theirs.inputs,
        theirs.outputs,
    )
    assert list(ours.values) == list(theirs.values)
    for one, other in zip(ours.values.values(), theirs.values.values(), strict=True):
        assert (one.shape, one.dtype, one.is_constant) == (other.shape, other.dtype, other.is_constant)
        if one.is_constant:
            np.testing.assert_array_equal(one.data, other.data)
            assert other.data.flags.writeable
    for one, other in zip(ours.nodes, theirs.nodes, strict=True):
        assert (one.name, one.op, one.inputs, one.outputs) == (other.name, other.op, other.inputs, other.outputs)
        assert (one.domain, one.origin, one.attrs.keys()) == (other.domain, other.origin, other.attrs.keys())
        for key, value in one.attrs.items():
            np.testing.assert_array_equal(value, other.attrs[key])
            assert type(value) is type(other.attrs[key])


@pytest.mark.usefixtures("_both")
def test_shapes_and_their_errors_reach_the_child_and_come_back(tmp_path, monkeypatch):
    conv_net(batch="N").save(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    assert load_limited("m.onnx", {"x": (3, 3, 12, 12)}).graph.values["x"].shape == (3, 3, 12, 12)
    with pytest.raises(UsageError, match="no such input"):
        load_limited("m.onnx", {"z": (3,)})


def test_name_of_the_file_may_be_no_text(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.onnx")
    conv_net().save(Path(path))
    assert load_limited(path).graph.nodes
    os.truncate(path, 100)
    with pytest.raises(ModelError, match=r"m\\udcff.onnx"):
        load_limited(path)
