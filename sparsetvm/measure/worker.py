"""The fork server and its workers: `python -m sparsetvm.measure.worker`, started by `measure.process`.

The server imports TVM once and runs no candidate. Each worker is a fork of it, ready after a few milliseconds instead
of the seconds that an import takes (the idea is AFL's fork server), in its own session so that it can be killed with
whatever it started. When the measuring process ends, however it ends, the server's channel closes and all is killed.
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
from typing import TYPE_CHECKING, NoReturn

from sparsetvm.core.target import Target
from sparsetvm.measure.protocol import (
    PID_FORMAT,
    READY,
    REAP_FORMAT,
    SPAWN,
    SPAWN_FORMAT,
    STATUS_FORMAT,
    Build,
    Request,
    Response,
    Retime,
    Run,
    SetTask,
    receive_message,
    send_message,
)
from sparsetvm.schedules.base import Template, template, template_names

if TYPE_CHECKING:
    from sparsetvm.measure.candidate import Session

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> int:
    """Serve on the socket whose descriptor is given until it closes."""
    parser = argparse.ArgumentParser(prog="python -m sparsetvm.measure.worker")
    parser.add_argument("--control", type=int, required=True, help="descriptor of the control socket")
    parser.add_argument("--templates", default="", help="module with further templates in TEMPLATES, for tests")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=options.control)
    extra = _preload(options.templates)
    control.sendall(READY)
    _ForkServer(control, extra).serve()
    return 0


def _preload(module: str) -> dict[str, Template]:
    """Import what workers need, so that forks have it. TVM starts no threads on import, which makes forking safe."""
    for needed in ("scipy.sparse", "scipy.special", "tvm", "sparsetvm.measure.candidate"):
        importlib.import_module(needed)
    for name in template_names():
        with contextlib.suppress(ImportError):  # the worker that needs it reports the error
            template(name)
    return dict(importlib.import_module(module).TEMPLATES) if module else {}


class _ForkServer:
    """Forks workers and buries them. Single-threaded; one request at a time."""

    def __init__(self, control: socket.socket, extra: dict[str, Template]) -> None:
        self._control = control
        self._extra = extra
        self._alive: set[int] = set()

    def serve(self) -> None:
        try:
            while True:
                message, descriptors, _, _ = socket.recv_fds(self._control, 64, 2)
                if not message:
                    return
                if message[:1] == SPAWN:
                    limit, pin = SPAWN_FORMAT.unpack(message[1:])
                    self._control.sendall(PID_FORMAT.pack(self._spawn(descriptors, limit, pin)))
                else:
                    pid, grace = REAP_FORMAT.unpack(message[1:])
                    self._control.sendall(STATUS_FORMAT.pack(*self._reap(pid, grace)))
        except OSError:
            return  # the measuring process is gone
        finally:
            for pid in list(self._alive):
                self._reap(pid, 0.0)

    def _spawn(self, descriptors: list[int], limit: int, pin: bool) -> int:
        pid = os.fork()
        if pid == 0:
            self._control.close()
            _worker_process(descriptors, limit, pin, self._extra)
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
            time.sleep(0.005)
            exited = _has_exited(pid)
        # The unburied leader keeps its process group number taken, so this hits nobody else.
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        self._alive.discard(pid)
        return status, not exited


def _has_exited(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _worker_process(descriptors: list[int], limit: int, pin: bool, extra: dict[str, Template]) -> NoReturn:
    """The forked child. Leaves through os._exit only: the server's own clean-up is not for it."""
    code = 1
    try:
        channel_fd, output_fd = descriptors
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        os.close(output_fd)
        _limit_process(limit, pin)
        _answer_requests(socket.socket(fileno=channel_fd), extra)
        code = 0
    except BaseException as problem:
        sys.stderr.write(f"{type(problem).__name__}: {problem}\n")
        sys.stderr.flush()
    finally:
        os._exit(code)


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


def _answer_requests(channel: socket.socket, extra: dict[str, Template]) -> None:
    def respond(response: Response) -> None:
        send_message(channel, response)

    def find(name: str) -> Template:
        return extra[name] if name in extra else template(name)

    session: Session | None = None
    while True:
        try:
            request: Request = receive_message(channel, Request)  # type: ignore[arg-type]
        except EOFError:
            return
        if isinstance(request, SetTask):
            session = _session_type(request.target)(request, find, respond)
        elif session is None:
            raise ValueError("the first request must set the task")
        elif isinstance(request, Run):
            respond(session.run(request))
        elif isinstance(request, Build):
            respond(session.build(request))
        elif isinstance(request, Retime):
            respond(session.retime(request))


if __name__ == "__main__":
    sys.exit(main())
