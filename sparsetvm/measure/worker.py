"""The fork servers and their workers: `python -m sparsetvm.measure.worker`, started by `measure.process`.

The first server imports TVM, wakes its compiler once and runs no candidate. For each task it forks a task server, which
prepares the inputs and the reference and runs no candidate either. Each worker is a fork of that, ready after a few
milliseconds instead of the seconds that an import and a reference take (the idea is AFL's fork server), in its own
session so that it can be killed with whatever it started. What left the session comes back to the server as an orphan
and is killed too. When the measuring process ends, however it ends, the servers' channels close and all is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import msgspec

from sparsetvm.core.target import Target
from sparsetvm.measure.protocol import (
    PID_FORMAT,
    READY,
    REAP,
    REAP_FORMAT,
    SPAWN_FORMAT,
    STATUS_FORMAT,
    TASK,
    Build,
    Reply,
    Request,
    Response,
    Retime,
    SetTask,
    Stage,
    receive_message,
    send_message,
)
from sparsetvm.schedules.base import Template, template, template_names

if TYPE_CHECKING:
    from sparsetvm.measure.candidate import Prepared, Session

_STOP_SECONDS = 4.0
_ORPHAN_ROUNDS = 100
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str] | None = None) -> int:
    """Serve on the socket whose descriptor is given until it closes."""
    parser = argparse.ArgumentParser(prog="python -m sparsetvm.measure.worker")
    parser.add_argument("--control", type=int, required=True, help="descriptor of the control socket")
    parser.add_argument("--target", required=True, help="the target as JSON")
    parser.add_argument("--templates", default="", help="module with further templates in TEMPLATES, for tests")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=options.control)
    extra = _preload(options.templates, msgspec.json.decode(options.target, type=Target))
    control.sendall(READY)
    _ForkServer(control, extra).serve()
    return 0


def _preload(module: str, target: Target) -> dict[str, Template]:
    """Import what workers need and compile something, so that forks have it. TVM starts no threads on either, which
    makes forking safe. Beside a GPU TVM stays out: it brings CUDA's libraries, and those do not survive a fork.
    """
    device = ("sparsetvm.measure.cuda_session",) if target.kind == "cuda" else ("tvm",)
    for needed in ("scipy.sparse", "scipy.special", "sparsetvm.measure.candidate", *device):
        importlib.import_module(needed)
    for name in template_names():
        with contextlib.suppress(ImportError):  # the worker that needs it reports the error
            template(name)
    _wake(target)
    return dict(importlib.import_module(module).TEMPLATES) if module else {}


def _wake(target: Target) -> None:
    if target.kind == "cpu":
        from sparsetvm.measure.compile import wake_compiler

        wake_compiler(target)


class _ForkServer:
    """Forks task servers or workers and buries them. Single-threaded; one request at a time.

    prepared: the task of a task server, None in the first server.
    """

    def __init__(self, control: socket.socket, extra: dict[str, Template], prepared: Prepared | None = None) -> None:
        self._control = control
        self._extra = extra
        self._prepared = prepared
        self._alive: set[int] = set()

    def serve(self) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        try:
            while True:
                message, descriptors, _, _ = socket.recv_fds(self._control, 64, 2)
                if not message:
                    return
                if message[:1] == REAP:
                    pid, grace = REAP_FORMAT.unpack(message[1:])
                    self._control.sendall(STATUS_FORMAT.pack(*self._reap(pid, grace)))
                else:
                    self._control.sendall(PID_FORMAT.pack(self._fork(message, descriptors)))
        except OSError:
            return  # the measuring process is gone
        finally:
            for pid in list(self._alive):
                # A task server whose own channel has closed needs the time to bury its workers.
                self._reap(pid, 0.0 if self._prepared else _STOP_SECONDS)

    def _fork(self, message: bytes, descriptors: list[int]) -> int:
        pid = os.fork()
        if pid == 0:
            self._control.close()
            if message[:1] == TASK:
                _become(lambda: _serve_task(descriptors, self._extra))
            _become(lambda: _work(descriptors, message, self._extra, self._prepared))
        for descriptor in descriptors:
            os.close(descriptor)
        self._alive.add(pid)
        return pid

    def _reap(self, pid: int, grace: float) -> tuple[int, bool]:
        if pid not in self._alive:
            return 0, False
        deadline = time.monotonic() + grace
        exited = _has_exited(pid)
        while not exited and time.monotonic() < deadline:
            time.sleep(0.002)
            exited = _has_exited(pid)
        # The unburied leader keeps its process group number taken, so this hits nobody else.
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        self._alive.discard(pid)
        self._kill_orphans()
        return status, not exited

    def _kill_orphans(self) -> None:
        """End the children that this server never forked: processes of dead workers that had left their session."""
        for _ in range(_ORPHAN_ROUNDS):
            orphans = [pid for pid in _children() if pid not in self._alive]
            if not orphans:
                return
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            for pid in orphans:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def _children() -> list[int]:
    """Processes whose parent this one is."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry.name}/stat", "rb") as stat:
                # "pid (name) state parent": the name may hold anything.
                if int(stat.read().rpartition(b")")[2].split()[1]) == os.getpid():
                    found.append(int(entry.name))
    return found


def _has_exited(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _become(life: Callable[[], None]) -> NoReturn:
    """What a forked child does. Leaves through os._exit only: the server's own clean-up is not for it."""
    code = 1
    try:
        os.setsid()
        life()
        code = 0
    except BaseException as problem:
        sys.stderr.write(f"{type(problem).__name__}: {problem}\n")
        sys.stderr.flush()
    finally:
        os._exit(code)


def _serve_task(descriptors: list[int], extra: dict[str, Template]) -> None:
    from sparsetvm.measure.candidate import prepare

    control = socket.socket(fileno=descriptors[0])
    request: SetTask = receive_message(control, SetTask)
    try:
        prepared = prepare(request)
    except Exception as problem:
        send_message(control, Reply("run_error", message=f"{type(problem).__name__}: {problem}"))
        return
    send_message(control, Reply("ok"))
    _ForkServer(control, extra, prepared).serve()


def _work(descriptors: list[int], message: bytes, extra: dict[str, Template], prepared: Prepared | None) -> None:
    limit, pin = SPAWN_FORMAT.unpack(message[1:])
    channel_fd, output_fd = descriptors
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    os.close(output_fd)
    if prepared is None:
        raise ValueError("only task servers have workers")
    channel = socket.socket(fileno=channel_fd)
    _wake(
        prepared.target
    )  # a first build in a fork copies thousands of pages: 0.1 s, better spent before the first trial
    _limit_process(limit, pin)
    send_message(channel, Stage("ready"))
    _answer_requests(channel, extra, prepared)


def _limit_process(limit: int, pin: bool) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limit:
        with open("/proc/self/statm", encoding="ascii") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + limit, mapped + limit))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("1000")  # when memory runs out the kernel takes the candidate, not the program
    cores = os.sched_getaffinity(0)
    if pin and len(cores) > 1:
        os.sched_setaffinity(0, {max(cores)})


def _session_type(target: Target) -> type[Session]:
    if target.kind == "cuda":
        from sparsetvm.measure.cuda_session import CudaSession

        return CudaSession
    from sparsetvm.measure.candidate import Session

    return Session


def _answer_requests(channel: socket.socket, extra: dict[str, Template], prepared: Prepared) -> None:
    def respond(response: Response) -> None:
        send_message(channel, response)

    def find(name: str) -> Template:
        return extra[name] if name in extra else template(name)

    session = _session_type(prepared.target)(prepared, find, respond)
    while True:
        try:
            request: Request = receive_message(channel, Request)  # type: ignore[arg-type]
        except EOFError:
            return
        if isinstance(request, Build):
            respond(session.build(request))
        elif isinstance(request, Retime):
            respond(session.retime(request))
        else:
            respond(session.run(request))


if __name__ == "__main__":
    sys.exit(main())
