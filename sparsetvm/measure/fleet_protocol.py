"""Messages between a tune and the workers of a fleet: msgpack in the byte strings of remote calls.

    sparsetvm.fleet.hello()          -> Hello
    sparsetvm.fleet.measure(RemoteRun | RemoteRetime) -> Answer

A worker keeps the task that it was given last; a request for another task is answered with `needs_task`.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np

from sparsetvm.core.config import Config
from sparsetvm.core.target import DeviceFingerprint, Target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Workload
from sparsetvm.search.trial import Measured

PROTOCOL = 1
HELLO, MEASURE = "sparsetvm.fleet.hello", "sparsetvm.fleet.measure"
DEFAULT_PORT = 9190
_SUFFIX = re.compile(r"(\.[a-z0-9]{1,8}){1,2}")


class Hello(msgspec.Struct, frozen=True):
    """What a worker says of itself: the device that it measures on, as a target and as records name it.

    version: of sparsetvm; process: "host:pid" of its session, for messages.
    """

    protocol: int
    version: str
    target: Target
    device: DeviceFingerprint
    process: str


class RemoteTask(msgspec.Struct, frozen=True):
    """A task with its weights; target, repeats and seed as the tune wants them."""

    workload: Workload
    target: Target
    weight: bytes
    bias: bytes | None
    repeats: int
    seed: int


class RemoteLibrary(msgspec.Struct, frozen=True):
    """A config that was built here: the files of the library by suffix (".so", ".npz")."""

    config: Config
    files: dict[str, bytes]
    seconds: float


class RemoteRun(msgspec.Struct, frozen=True, tag=True):
    """Check and time one library, of the task with that id; `task` only where the worker lacks it."""

    task_id: str
    library: RemoteLibrary
    task: RemoteTask | None = None


class RemoteRetime(msgspec.Struct, frozen=True, tag=True):
    """Check some libraries and time them side by side."""

    task_id: str
    libraries: tuple[RemoteLibrary, ...]
    rounds: int
    task: RemoteTask | None = None


class Answer(msgspec.Struct, frozen=True):
    """Results in the order of the libraries. fault: what is wrong with the worker, "" when all is well."""

    results: tuple[Measured, ...] = ()
    needs_task: bool = False
    fault: str = ""


RemoteRequest = RemoteRun | RemoteRetime


def task_message(task: Task, target: Target, repeats: int, seed: int) -> RemoteTask:
    """The task as it travels."""
    bias = None if task.bias is None else np.ascontiguousarray(task.bias, np.float32).tobytes()
    weight = np.ascontiguousarray(task.weight, np.float32).tobytes()
    return RemoteTask(task.workload, target, weight, bias, repeats, seed)


def task_of(message: RemoteTask) -> Task:
    """The task that was sent. Raises ValueError when the sizes do not fit."""
    w = message.workload
    weight = np.frombuffer(message.weight, np.float32).reshape(w.m, w.k)
    bias = None if message.bias is None else np.frombuffer(message.bias, np.float32).reshape(w.m)
    return Task(w.describe(), w, weight, bias)


def library_message(config: Config, files: list[Path], stem: str, seconds: float) -> RemoteLibrary:
    """The files of a library as they travel."""
    return RemoteLibrary(config, {file.name.removeprefix(stem): file.read_bytes() for file in files}, seconds)


def write_library(library: RemoteLibrary, folder: Path, stem: str) -> Path:
    """Write the files under a name of our own; the path of the library. Raises ValueError for odd suffixes."""
    for suffix, content in library.files.items():
        if not _SUFFIX.fullmatch(suffix):
            raise ValueError(f"a library with a file {suffix!r}")
        (folder / f"{stem}{suffix}").write_bytes(content)
    return folder / f"{stem}.so"
