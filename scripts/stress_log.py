"""Kill writers of one tuning log at random moments; no record that `append` has acknowledged may be lost.

    python scripts/stress_log.py [--appends 10000] [--writers 8] [--no-locks] [--json OUT.json]

Writers append records to one log and acknowledge each one after `append` has returned. All the while random writers are
killed with SIGKILL and replaced, until so many appends are acknowledged. Then the log is read, damaged at its end, and
read again. --no-locks pretends that the file system has no locks. Exit code 1 when anything is lost.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import random
import select
import signal
import struct
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.record import Record
from sparsetvm.core.target import DeviceFingerprint, ToolchainFingerprint
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.log.journal import append, read_records
from sparsetvm.log.location import expand

_ACK = struct.Struct("<II")  # writer, number of the record; written in one piece
_MEAN_LIFE = 0.1  # seconds from a kill to the next one
_PATTERN = PatternSummary("unstructured", (1, 1), 0.1, 1.4, 0, "0" * 16)


@dataclass
class Outcome:
    """acknowledged: appends that returned. lost: of these, not in the log. torn: lines that readers skip.

    kills: writers killed. truncated_ok: the log loads however its last three records are cut.
    """

    acknowledged: int
    kills: int
    records: int
    lost: int
    torn: int
    truncated_ok: bool
    seconds: float

    @property
    def passed(self) -> bool:
        return self.lost == 0 and self.torn <= self.kills and self.truncated_ok


def record_of(writer: int, number: int) -> Record:
    """A record that says who wrote it."""
    return Record(
        workload=Workload("matmul", 512, 256, 128, PLAIN, PLAIN, Epilogue(), _PATTERN),
        config=Config.of("x86.pattern_code", rows=28, k_block=384),
        status="ok",
        device=DeviceFingerprint("cpu", "vendor", "model", "avx512", 2, "0" * 12),
        toolchain=ToolchainFingerprint("0.1.0", "0.27.0", "2.0.0", "3.11.2"),
        template_version=1,
        space="0" * 12,
        times_us=(1.0 + number,),
        seed=writer,
    )


def write_until_killed(path: Path, writer: int, acks: int) -> NoReturn:
    """The life of a writer process."""
    number = 0
    while True:
        append(path, record_of(writer, number))
        os.write(acks, _ACK.pack(writer, number))
        number += 1


def without_locks() -> None:
    """Make this process and its forks believe that files cannot be locked."""

    def flock(descriptor: int, operation: int) -> NoReturn:
        raise OSError(errno.ENOLCK, "no locks available")

    fcntl.flock = flock  # type: ignore[assignment]


def stress(path: Path, appends: int, writers: int, seed: int = 0) -> Outcome:
    """Run the writers until `appends` are acknowledged, then look at the log."""
    rng, begun = random.Random(seed), time.monotonic()
    reader, acks = os.pipe()
    living: list[int] = []
    acknowledged: set[tuple[int, int]] = set()
    started = kills = 0
    try:
        next_kill = time.monotonic()
        while len(acknowledged) < appends:
            while len(living) < writers:
                living.append(_fork_writer(path, started, acks))
                started += 1
            if select.select([reader], [], [], max(0.0, next_kill - time.monotonic()))[0]:
                data = os.read(reader, _ACK.size * 512)
                acknowledged.update(_ACK.iter_unpack(data))
            if time.monotonic() >= next_kill:
                _kill(living.pop(rng.randrange(len(living))))
                kills += 1
                next_kill = time.monotonic() + rng.expovariate(1 / _MEAN_LIFE)
    finally:
        for pid in living:
            _kill(pid)
        kills += len(living)
        os.close(acks)
    while data := os.read(reader, _ACK.size * 512):
        acknowledged.update(_ACK.iter_unpack(data))
    os.close(reader)
    return _judge(path, acknowledged, kills, time.monotonic() - begun)


def _fork_writer(path: Path, writer: int, acks: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            write_until_killed(path, writer, acks)
        finally:
            os._exit(1)
    return pid


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        raise RuntimeError(f"a writer ended by itself with status {status}")


def _judge(path: Path, acknowledged: set[tuple[int, int]], kills: int, seconds: float) -> Outcome:
    read = [read_records(file) for file in expand([path])]
    found = {(r.seed, int(r.best_us) - 1) for result in read for r in result.records}
    torn = sum(len(result.bad) for result in read)
    records = sum(len(result.records) for result in read)
    lost = len(acknowledged - found)
    return Outcome(len(acknowledged), kills, records, lost, torn, survives_truncation(expand([path])[0]), seconds)


def survives_truncation(path: Path, records: int = 3) -> bool:
    """True when a log of the last `records` lines of `path`, cut after any byte, loads."""
    lines = path.read_bytes().splitlines(keepends=True)[-records:]
    with tempfile.TemporaryDirectory() as folder:
        cut = Path(folder, "cut.jsonl")
        cut.write_bytes(b"".join(lines))
        for end in range(cut.stat().st_size, -1, -1):
            os.truncate(cut, end)
            whole = sum(end >= sum(map(len, lines[: at + 1])) - 1 for at in range(len(lines)))
            if len(read_records(cut).records) != whole:
                return False
    return True


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--appends", type=int, default=10_000)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--no-locks", action="store_true", help="as on a file system without locks")
    parser.add_argument("--log", type=Path, help="file to write to (default: in a temporary folder)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.no_locks:
        without_locks()
    with tempfile.TemporaryDirectory() as folder:
        outcome = stress(args.log or Path(folder, "cpu-stress.jsonl"), args.appends, args.writers, args.seed)
    for name, value in asdict(outcome).items():
        print(f"{name:>14}  {value:.1f}" if isinstance(value, float) else f"{name:>14}  {value}")
    print("passed" if outcome.passed else "FAILED")
    if args.json:
        args.json.write_text(json.dumps({"schema": 1, "passed": outcome.passed, **asdict(outcome)}, indent=2))
    return 0 if outcome.passed else 1


if __name__ == "__main__":
    sys.exit(main())
