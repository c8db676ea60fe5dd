"""Programs spread over the GPUs of a machine: one at a time on each, with a time limit each and one for all.

A job runs in a process group of its own, with CUDA_VISIBLE_DEVICES naming its GPU, and writes OUT/NAME.log; its result,
where it has one, is OUT/NAME.json. What has become of each stands in OUT/jobs.json after every change, so that a run
that was cut short goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["ok", "failed", "timeout", "no time", "interrupted"]
_POLL, _GRACE = 0.05, 5.0  # seconds between looks; from SIGTERM to SIGKILL
_LEAST_SHARE = 0.5  # of what a job is expected to take: with less time left it is not started


@dataclass(frozen=True)
class Job:
    """command: of the program. seconds: what it is expected to take; limit: after which it is stopped. whole: it needs
    all GPUs. rank: those of the lowest come first.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    limit: float
    whole: bool = False
    rank: int = 0


@dataclass
class Outcome:
    """What became of a job. code: its exit status, None where it has none."""

    state: State
    seconds: float = 0.0
    code: int | None = None
    devices: list[str] = field(default_factory=list)


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    devices: list[str]
    started: float
    stop_at: float
    stopped: bool = False


class Jobs:
    """Runs jobs on `devices` (names for CUDA_VISIBLE_DEVICES). out: folder of logs, results and jobs.json."""

    def __init__(self, out: Path, devices: Sequence[str], tell: Callable[[str], None] = print) -> None:
        self._out, self._devices, self._tell = out, list(devices), tell
        out.mkdir(parents=True, exist_ok=True)

    def result(self, job: Job) -> dict[str, Any] | None:
        """What a job has written, whole or, where it was stopped, up to then."""
        try:
            found = json.loads((self._out / f"{job.name}.json").read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def run(self, jobs: Sequence[Job], seconds: float, *, again: bool = False) -> dict[str, Outcome]:
        """Run those that an earlier run has not ended well with the same command, or with `again` all of them, for
        `seconds` in all: by rank, what needs all GPUs first, then the longest. Outcomes by name, earlier ones included.

        After Ctrl-C the jobs that run are stopped, the rest stays "interrupted".
        """
        known = self._read()
        outcomes: dict[str, Outcome] = {}
        for job in jobs:
            earlier = known.get(job.name)
            if not again and earlier and earlier["command"] == list(job.command) and earlier["state"] == "ok":
                outcomes[job.name] = Outcome("ok", earlier["seconds"], earlier["code"], earlier["devices"])
        waiting = [job for job in jobs if job.name not in outcomes]
        waiting.sort(key=lambda job: (job.rank, not job.whole, -job.seconds))
        for job in waiting:
            (self._out / f"{job.name}.json").unlink(missing_ok=True)
        running: list[_Running] = []
        free, end = list(self._devices), time.monotonic() + seconds
        with _noted_interrupts() as interrupts:
            while (waiting or running) and not interrupts:
                for done in [one for one in running if one.process.poll() is not None]:
                    running.remove(done)
                    free += done.devices
                    outcomes[done.job.name] = self._ended(done)
                    self._write(jobs, outcomes, known)
                self._stop_late(running)
                self._start(waiting, running, free, end, outcomes)
                time.sleep(_POLL)
        # Nothing is left over unless there was an interrupt.
        for one in running:
            _signal(one, signal.SIGTERM)
        for one in running:
            _wait(one)
        for job in [*waiting, *(one.job for one in running)]:
            outcomes[job.name] = Outcome("interrupted")
        self._write(jobs, outcomes, known)
        return {job.name: outcomes[job.name] for job in jobs}

    def _start(
        self, waiting: list[Job], running: list[_Running], free: list[str], end: float, outcomes: dict[str, Outcome]
    ) -> None:
        """Start what can be started now; give up what there is no time for."""
        for job in list(waiting):
            left = end - time.monotonic()
            if left < _LEAST_SHARE * job.seconds:
                waiting.remove(job)
                outcomes[job.name] = Outcome("no time")
                continue
            needed = len(self._devices) if job.whole else 1
            if len(free) < needed:
                if job.whole:
                    return  # GPUs that become free are kept for it
                continue
            waiting.remove(job)
            taken, free[:] = free[:needed], free[needed:]
            running.append(self._launch(job, sorted(taken, key=self._devices.index), min(job.limit, left)))

    def _launch(self, job: Job, devices: list[str], limit: float) -> _Running:
        self._tell(f"{job.name}: on GPU {','.join(devices)}, at most {limit:.0f} s")
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(devices)}
        with (self._out / f"{job.name}.log").open("wb") as log:
            process = subprocess.Popen(
                job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip
        now = time.monotonic()
        return _Running(job, process, devices, now, now + limit)

    def _stop_late(self, running: list[_Running]) -> None:
        for one in running:
            late = time.monotonic() - one.stop_at
            if late >= 0 and not one.stopped:
                _signal(one, signal.SIGTERM)
                one.stopped = True
            elif late >= _GRACE:
                _signal(one, signal.SIGKILL)

    def _ended(self, one: _Running) -> Outcome:
        _signal(one, signal.SIGKILL)  # what it has left behind
        code, seconds = one.process.returncode, time.monotonic() - one.started
        state: State = "timeout" if one.stopped else "ok" if code == 0 else "failed"
        self._tell(f"{one.job.name}: {state} after {seconds:.0f} s")
        return Outcome(state, seconds, code, one.devices)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads((self._out / "jobs.json").read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, jobs: Sequence[Job], outcomes: dict[str, Outcome], known: dict[str, Any]) -> None:
        """Those of this run; of jobs that are not in it what was known stays."""
        commands = {job.name: list(job.command) for job in jobs}
        now = {name: {**vars(outcome), "command": commands[name]} for name, outcome in outcomes.items()}
        partial = self._out / "jobs.json.partial"
        partial.write_text(json.dumps({**known, **now}, indent=2) + "\n")
        partial.replace(self._out / "jobs.json")


@contextlib.contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """Signals of Ctrl-C so far, in place of an exception, which could come while a job is being started and lose it."""
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _signal(one: _Running, number: int) -> None:
    """To the job and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(one.process.pid, number)


def _wait(one: _Running) -> None:
    try:
        one.process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        _signal(one, signal.SIGKILL)
        one.process.wait()
