"""Run what parses a hostile file in a child process with little memory and time, which can write no file (`limits`).

The child answers over a pipe: MessagePack, then the bytes of arrays. Nothing that it says is executed. It is a fork
where that is safe (a few milliseconds), else a fresh interpreter (half a second).
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol

import msgspec
import numpy as np

from sparsetvm import errors
from sparsetvm.errors import EnvironmentProblem, ModelError, SparseTvmError
from sparsetvm.frontend.limits import cpu_seconds, limit_this_process

_SIZE = struct.Struct("<Q")
_MAX_HEADER = 1 << 30
_DESCRIPTORS = 1 << 20
_STOP_SECONDS = 2.0
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031
_TRUST = "check where the file comes from; if you trust it, report it"
# The import path is that of this process; "-I" keeps the current folder, which may be one of downloaded models, out.
_BOOT = """
import json, sys
request = json.loads(sys.argv[1])
sys.path[:] = request["path"]
from sparsetvm.frontend.child import serve_request
serve_request(request)
"""


@dataclass
class Parcel:
    """What a child sends: a value of plain types, and arrays."""

    value: Any
    arrays: list[np.ndarray] = field(default_factory=list)


Call = Callable[..., Parcel]


class _Array(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]


class _Answer(msgspec.Struct):
    """kind: "ok", the name of an error of errors.py, "memory" or "bug"."""

    kind: str
    value: Any = None
    message: str = ""
    hint: str | None = None
    layer: str | None = None
    arrays: list[_Array] = []


def in_child(call: Call, *arguments: Any, size: int) -> Parcel:
    """`call(*arguments)` in a limited child. call: a function at module level; arguments: what JSON can hold.

    size: bytes of the file that is read; memory and time are limited by it. Raises what `call` raises of errors.py,
    ModelError when the child crashes or meets a limit, EnvironmentProblem when somebody kills it.
    """
    read_end, write_end = os.pipe()
    with contextlib.suppress(OSError):  # only faster: the user may have used up what all pipes may hold
        fcntl.fcntl(write_end, _F_SETPIPE_SZ, _PIPE_BYTES)
    with open(read_end, "rb", buffering=0) as stream:
        try:
            child = _start(call, arguments, size, write_end)
        finally:
            os.close(write_end)
        parcel = None
        try:
            parcel = _receive(stream)
        finally:
            status = child.stop(_STOP_SECONDS if parcel is None else 0)
    if parcel is None:
        raise _death(status, size)
    return parcel


class _Child(Protocol):
    def stop(self, seconds: float) -> int:
        """Wait that long, then kill it; the number of the signal that ended it, 0 when none did."""


@dataclass
class _Fork:
    pid: int

    def stop(self, seconds: float) -> int:
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            if time.monotonic() >= end:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return 0
            time.sleep(0.002)


@dataclass
class _Interpreter:
    process: subprocess.Popen[bytes]

    def stop(self, seconds: float) -> int:
        try:
            return -min(0, self.process.wait(seconds))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return 0


def _start(call: Call, arguments: Sequence[Any], size: int, write_end: int) -> _Child:
    # Another thread may hold a lock at the moment of the fork, for which the child would wait forever.
    if threading.active_count() == 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads; only libraries' own are left
            pid = os.fork()
        if pid == 0:
            _serve_fork(call, arguments, size, write_end)
        return _Fork(pid)
    request = {
        "path": [*(os.path.abspath(path) for path in sys.path if path), str(Path(__file__).parents[2])],
        "call": [call.__module__, call.__name__],
        "arguments": arguments,
        "size": size,
        "descriptor": write_end,
    }
    null = subprocess.DEVNULL
    command = [sys.executable, "-I", "-c", _BOOT, json.dumps(request)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    return _Interpreter(
        subprocess.Popen(command, stdin=null, stdout=null, stderr=null, pass_fds=(write_end,), env=environment)
    )


def _serve_fork(call: Call, arguments: Sequence[Any], size: int, write_end: int) -> NoReturn:
    """Answer and end, without anything that the parent would run at its own end."""
    try:
        gc.disable()  # garbage of the parent would close descriptors that are ours by now
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.closerange(3, write_end)
        os.closerange(write_end + 1, min(_DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        _serve(call, arguments, size, write_end)
    finally:
        os._exit(0)


def serve_request(request: dict[str, Any]) -> None:
    """The fresh interpreter's work."""
    module, function = request["call"]
    _serve(
        getattr(importlib.import_module(module), function), request["arguments"], request["size"], request["descriptor"]
    )


def _serve(call: Call, arguments: Sequence[Any], size: int, write_end: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends us
    limit_this_process(size)
    arrays: list[np.ndarray] = []
    try:
        parcel = call(*arguments)
        arrays = parcel.arrays
        specs = [_Array(str(array.dtype), array.shape) for array in arrays]
        header = msgspec.msgpack.encode(_Answer("ok", parcel.value, arrays=specs))
    except SparseTvmError as error:
        header = msgspec.msgpack.encode(_Answer(type(error).__name__, None, error.message, error.hint, error.layer))
    except MemoryError:
        header = msgspec.msgpack.encode(_Answer("memory"))
    except BaseException:
        header = msgspec.msgpack.encode(_Answer("bug", None, traceback.format_exc()))
    with contextlib.suppress(BrokenPipeError), open(write_end, "wb", buffering=0) as stream:
        _write(stream, memoryview(_SIZE.pack(len(header)) + header))
        while arrays:
            _write(stream, _bytes_of(arrays.pop(0)))


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _write(stream: BinaryIO, view: memoryview) -> None:
    while view:
        view = view[stream.write(view) :]


def _receive(stream: BinaryIO) -> Parcel | None:
    """The child's answer; None when it ends before it has answered, or talks nonsense."""
    try:
        size = _SIZE.unpack(_read(stream, _SIZE.size))[0]
        answer = msgspec.msgpack.decode(_read(stream, min(size, _MAX_HEADER)), type=_Answer)
        if answer.kind != "ok":
            raise _error(answer)
        arrays = []
        for spec in answer.arrays:
            arrays.append(np.empty(spec.shape, spec.dtype))
            _fill(stream, _bytes_of(arrays[-1]))
    except (EOFError, msgspec.MsgspecError, ValueError, TypeError):
        return None
    return Parcel(answer.value, arrays)


def _read(stream: BinaryIO, size: int) -> bytearray:
    data = bytearray()
    while len(data) < size:  # no memory for what is only announced
        piece = stream.read(min(size - len(data), _PIPE_BYTES))
        if not piece:
            raise EOFError
        data += piece
    return data


def _fill(stream: BinaryIO, view: memoryview) -> None:
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        view = view[count:]


def _error(answer: _Answer) -> Exception:
    if answer.kind == "memory":
        return ModelError("reading the model takes far more memory than its size should need", hint=_TRUST)
    known = getattr(errors, answer.kind, None)
    if isinstance(known, type) and issubclass(known, SparseTvmError):
        return known(answer.message, hint=answer.hint, layer=answer.layer)
    return RuntimeError(f"in the process that reads models:\n{answer.message}")


def _death(number: int, size: int) -> SparseTvmError:
    """The error for a child that ended without an answer; number: of the signal that ended it, or 0."""
    name = signal.Signals(number).name if number else "no signal"
    if number == signal.SIGXCPU:
        return ModelError(f"reading the model takes more than {cpu_seconds(size)} seconds", hint=_TRUST)
    if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
        return EnvironmentProblem(
            f"the process that reads the model was killed ({name})", hint="free some memory, then try again"
        )
    return ModelError(f"the model crashes the libraries that read it, or takes too much memory ({name})", hint=_TRUST)
