"""The server of one worker of a fleet: TVM's RPC server, with the measuring functions of sparsetvm beside TVM's own.

`python -m sparsetvm.measure.fleet_server`, started and watched by `fleet_worker`. For each session TVM forks a process;
in it candidates are checked and timed by the same `Measurer` as in a local tune, in processes of their own that may
crash. What ends a session (the tune hangs up, the process is killed) ends them too.

Whoever reaches the port may run any code here: that is what RPC is. It listens on the loopback device by default.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgspec

from sparsetvm.core.target import Target, default_threads, device_fingerprint, parse_target
from sparsetvm.core.version import VERSION
from sparsetvm.errors import SparseTvmError
from sparsetvm.measure.fleet_protocol import (
    HELLO,
    MEASURE,
    PROTOCOL,
    Answer,
    Hello,
    RemoteRequest,
    RemoteRun,
    RemoteTask,
    task_of,
    write_library,
)
from sparsetvm.measure.pool import Measurer

_BEAT_SECONDS = 1.0


class Station:
    """What a session measures with: one task at a time, its libraries in a temporary folder."""

    def __init__(
        self, target: Target, templates: str = "", run_timeout: float = 10.0, memory: int | None = None
    ) -> None:
        self._target, self._templates = target, templates
        self._run_timeout, self._memory = run_timeout, memory
        self._measurer: Measurer | None = None
        self._task_id = ""
        self._numbers = itertools.count()

    def hello(self) -> Hello:
        """Who measures here."""
        process = f"{socket.gethostname()}:{os.getpid()}"
        return Hello(PROTOCOL, VERSION, self._target, device_fingerprint(self._target), process)

    def measure(self, request: RemoteRequest) -> Answer:
        """Answer a request; faults of this machine are told as such, those of candidates are results."""
        try:
            if request.task is not None:
                self._use(request.task, request.task_id)
            if self._measurer is None or self._task_id != request.task_id:
                return Answer(needs_task=True)
            return self._measured(self._measurer, request)
        except SparseTvmError as problem:
            return Answer(fault=str(problem))
        except (OSError, ValueError) as problem:
            return Answer(fault=f"{type(problem).__name__}: {problem}")

    def close(self) -> None:
        """Stop all processes."""
        if self._measurer is not None:
            self._measurer.close()

    def _use(self, task: RemoteTask, task_id: str) -> None:
        target = self._as_asked(task.target)
        self._task = task_of(task)
        if self._measurer is None or self._measurer.target != target:
            self.close()
            self._measurer = Measurer(
                target,
                repeats=task.repeats,
                seed=task.seed,
                run_timeout=self._run_timeout,
                memory_limit=self._memory,
                templates=self._templates,
            )
        self._task_id = task_id

    def _as_asked(self, asked: Target) -> Target:
        """This machine's device with the threads and arithmetic that the tune asks for."""
        ours = self._target
        if (asked.kind, asked.mcpu, asked.isa) != (ours.kind, ours.mcpu, ours.isa):
            raise SparseTvmError(f"the worker measures on {ours}, the tune compiles for {asked}")
        if asked.kind == "cpu" and asked.threads > default_threads():
            raise SparseTvmError(f"the tune wants {asked.threads} threads, the worker has {default_threads()} cores")
        return msgspec.structs.replace(ours, threads=asked.threads, tf32=asked.tf32, fp16=asked.fp16, bf16=asked.bf16)

    def _measured(self, measurer: Measurer, request: RemoteRequest) -> Answer:
        libraries = (request.library,) if isinstance(request, RemoteRun) else request.libraries
        device = device_fingerprint(self._target)
        with tempfile.TemporaryDirectory(prefix="sparsetvm-fleet-") as folder:
            paths = [write_library(library, Path(folder), f"remote{next(self._numbers)}") for library in libraries]
            if isinstance(request, RemoteRun):
                results = [measurer.measure_library(self._task, libraries[0].config, paths[0])]
            else:
                configs = [library.config for library in libraries]
                results = measurer.retime(self._task, configs, request.rounds, paths)
        return Answer(
            tuple(
                msgspec.structs.replace(result, device=device, build_seconds=library.seconds)
                for result, library in zip(results, libraries, strict=True)
            )
        )


def register(station: Station) -> None:
    """Make the functions of a station callable from remote."""
    import tvm_ffi

    def hello() -> bytes:
        return msgspec.msgpack.encode(station.hello())

    def measure(message: bytes) -> bytes:
        try:
            request = msgspec.msgpack.decode(bytes(message), type=RemoteRequest)
        except msgspec.MsgspecError as problem:
            return msgspec.msgpack.encode(Answer(fault=f"malformed request: {problem}"))
        return msgspec.msgpack.encode(station.measure(request))

    tvm_ffi.register_global_func(HELLO, hello, override=True)
    tvm_ffi.register_global_func(MEASURE, measure, override=True)


def main(arguments: list[str] | None = None) -> int:
    """Serve until the listening thread ends or the supervisor's pipe closes; a byte to it for every second of life."""
    parser = argparse.ArgumentParser(prog="python -m sparsetvm.measure.fleet_server")
    parser.add_argument("--tracker", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9091)
    parser.add_argument("--target", required=True)
    parser.add_argument("--beat", type=int, required=True, help="descriptor that gets a byte every second")
    parser.add_argument("--run-timeout", type=float, default=10.0)
    parser.add_argument("--memory", type=int)
    parser.add_argument("--advertise", default="")
    parser.add_argument("--templates", default="", help="module with further templates, for tests")
    options = parser.parse_args(arguments)
    from tvm.rpc.server import PopenRPCServerState

    target = parse_target(options.target)
    device_fingerprint(target)  # asks the driver, which sessions, being forks, must not
    register(Station(target, options.templates, options.run_timeout, options.memory))
    threading.excepthook = _say_why  # a trace of TVM's listening thread says less
    host, _, port = options.tracker.rpartition(":")
    state = PopenRPCServerState(
        options.host, options.port, options.port + 1000, tracker_addr=(host, int(port)), key=options.key,
        custom_addr=options.advertise or options.host, silent=True,
    )  # fmt: skip
    while state.thread.is_alive():
        try:
            os.write(options.beat, b".")
        except OSError:
            os._exit(0)  # nobody watches any more; the thread that listens would not end
        time.sleep(_BEAT_SECONDS)
    os._exit(1)  # a session that died takes TVM's listening thread along; what it left must not keep the process


def _say_why(ended: threading.ExceptHookArgs) -> None:
    sys.stderr.write(f"the server's thread ended: {ended.exc_value}\n")


if __name__ == "__main__":
    sys.exit(main())
