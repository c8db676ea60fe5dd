"""Messages between the measurer and its worker processes: length-prefixed msgpack on sockets, nothing executable."""

from __future__ import annotations

import socket
import struct
from typing import TypeVar

import msgspec

from sparsetvm.core.config import Config
from sparsetvm.core.record import Conditions, Status
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.measure.doubt import Limits

# Requests to a fork server; descriptors travel beside TASK and SPAWN.
TASK, SPAWN, REAP, READY = b"T", b"S", b"R", b"!"
SPAWN_FORMAT = struct.Struct("<q?")  # memory limit in bytes (0: none), pin to one core
REAP_FORMAT = struct.Struct("<id")  # process id, seconds to wait before it is killed
PID_FORMAT = struct.Struct("<i")
STATUS_FORMAT = struct.Struct("<i?")  # wait status, killed by the server

_HEADER = struct.Struct("<I")
_LIMIT = 64 << 20


class SetTask(msgspec.Struct, frozen=True, tag=True):
    """What all requests to the workers of a task server are about. weight, bias: paths of .npy files.

    check: False for workers that only build, which need no references.
    """

    workload: Workload
    target: Target
    weight: str
    bias: str | None
    seed: int
    check: bool = True


class Run(msgspec.Struct, frozen=True, tag=True):
    """Build the config (or load `library`, a .so built earlier), check it and time it within `seconds`.

    limits: times in microseconds that are doubted and that are impossible, see measure/doubt.py.
    """

    config: Config
    repeats: int
    seconds: float
    library: str | None = None
    limits: Limits = Limits()


class Build(msgspec.Struct, frozen=True, tag=True):
    """Build the config into the file `library`; its packed arrays go to `library` + ".npz"."""

    config: Config
    library: str


class Retime(msgspec.Struct, frozen=True, tag=True):
    """Build and check all configs, then time them in `rounds` rounds, each in another order.

    The first that works is timed as two kernels: what their times differ by is the noise of the machine. libraries:
    what each was built into, where they were built before.
    """

    configs: tuple[Config, ...]
    rounds: int
    seconds: float
    libraries: tuple[str, ...] = ()


class Stage(msgspec.Struct, frozen=True, tag=True):
    """The worker begins a stage of config `index`; it decides which time limit holds and what a crash is called."""

    name: str
    index: int = 0


class Reply(msgspec.Struct, frozen=True, tag=True):
    """Result of Run or Build, or of one config of Retime. remeasured, conditions, other_us: as in a Record."""

    status: Status
    times_us: tuple[float, ...] = ()
    error: float | None = None
    message: str = ""
    build_seconds: float = 0.0
    remeasured: str = ""
    conditions: Conditions | None = None
    other_us: float | None = None


class Replies(msgspec.Struct, frozen=True, tag=True):
    """Result of Retime, in the order of its configs."""

    replies: tuple[Reply, ...]


Request = Run | Build | Retime
Response = Stage | Reply | Replies

_MEMORY_WORDS = (
    "bad_alloc",
    "out of memory",
    "Cannot allocate memory",
    "Unable to allocate",
    "MemoryError",
    "ERROR_OUT_OF_MEMORY",
)

_Message = TypeVar("_Message")


def tells_of_memory(text: str) -> bool:
    """True when the words of an error say that memory ran out (TVM, LLVM, libstdc++ and numpy differ)."""
    return any(word in text for word in _MEMORY_WORDS)


def send_message(channel: socket.socket, message: SetTask | Request | Response) -> None:
    """Write one message. Raises OSError when the other side is gone."""
    body = msgspec.msgpack.encode(message)
    channel.sendall(_HEADER.pack(len(body)) + body)


def receive_message(channel: socket.socket, kind: type[_Message]) -> _Message:
    """Read one message. Raises EOFError when the other side is gone, ValueError when it is malformed."""
    (size,) = _HEADER.unpack(_receive(channel, _HEADER.size))
    if size > _LIMIT:
        raise ValueError(f"a message of {size} bytes is longer than the limit of {_LIMIT}")
    try:
        return msgspec.msgpack.decode(_receive(channel, size), type=kind)
    except msgspec.MsgspecError as problem:
        raise ValueError(f"malformed message: {problem}") from problem


def _receive(channel: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(size - len(parts))
        if not part:
            raise EOFError("the other side closed the channel")
        parts += part
    return bytes(parts)
