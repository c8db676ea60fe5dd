"""Fuzz one part of sparsetvm for a given time, guided by coverage.

    pip install atheris
    python scripts/fuzz.py loader --seconds 3600 [--jobs 1] [--memory 2048] [--out fuzz_out] [--json OUT.json]

TARGET is loader, analysis, log or target (tests/fuzz/targets.py). What raises anything but the project's own errors,
takes more than 20 seconds of CPU time or more memory than allowed is a finding: its input is kept in `--out`, one for
each place where an error comes from, and the fuzzer goes on. New inputs that reach new code are kept in `--out` too, so
that the next run goes on from there; --jobs processes share them. Prints executions, the CPU time that they took (not
that of starting), findings and peak memory, and writes --json after each round of 45 seconds; exit code 1 when there
is a finding.

    python scripts/fuzz.py loader --repeat fuzz_out/loader/crash-...    # one input, with its traceback
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import operator
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
NAMES = ("loader", "analysis", "log", "target")
_INPUT_SECONDS = 20  # CPU time of one input
_INPUT_HANGS = 300  # seconds, however busy the machine is
_NEVER = 1 << 20  # for libFuzzer's own alarm: it prints, and so may wait for itself where the input allocates memory
# Then the fuzzer starts anew: with what the others found, without what Atheris leaks, and little is lost when it is
# killed.
_ROUND_SECONDS = 45.0
_EXTRA_ADDRESS_SPACE = (
    1 << 30
)  # for one input, as in the child that parses models; more is a MemoryError there and here
# A thread of a linear algebra library reserves 40 MB, one for each core, and scipy, whose library is loaded when the
# first input needs it, brings as many again: on 16 cores there was no address space left for the inputs.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_MOST_FINDINGS = 20
_KEEP_LINES = 400
_CURRENT, _LOG = "current", "last_round.txt"
_HANGS = re.compile(r"^Timeout \(.*\)!$", re.MULTILINE)  # of faulthandler
_COMPARE_SHIFT = 5 if sys.version_info >= (3, 13) else 4 if sys.version_info >= (3, 12) else 0
_COMPARE = (operator.lt, operator.le, operator.eq, operator.ne, operator.gt, operator.ge)  # as bytecode numbers them


@dataclass
class Outcome:
    """executions: inputs run. cpu_seconds: time that took, of all processes. findings: place of each error -> the first
    input that reached it.
    """

    target: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    executions: int = 0
    peak_memory_mb: int = 0
    corpus: int = 0
    findings: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"{self.target}: {self.executions} executions in {self.cpu_seconds:.0f} s of CPU time "
            f"({self.seconds:.0f} s), {len(self.findings)} findings, peak memory {self.peak_memory_mb} MB, "
            f"{self.corpus} inputs that reach new code"
        )


@dataclass
class Round:
    """One run of libFuzzer: the end of what it printed, its CPU time without that of starting, its largest memory."""

    log: str
    cpu_seconds: float
    peak_memory_mb: int


class Fuzzing:
    """Fuzzers of one target side by side. The outcome is written to `json_path` after each round of each."""

    def __init__(self, target: str, seconds: float, memory: int, out: Path, json_path: Path | None = None) -> None:
        self.outcome, self.memory, self.json_path = Outcome(target), memory, json_path
        self.corpus, self.findings = out / target / "corpus", out / target
        self.corpus.mkdir(parents=True, exist_ok=True)
        self.begun = time.monotonic()
        self.end = self.begun + seconds
        self.errors: list[str] = []
        self._lock = threading.Lock()

    def run(self, jobs: int) -> Outcome:
        """Fuzz until the time is over. Exits when the fuzzer does not start."""
        threads = [threading.Thread(target=self._fuzz, args=(self.findings / f"job-{job}",)) for job in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            sys.exit(f"the fuzzer does not start:\n{self.errors[0]}")
        return self.outcome

    def _fuzz(self, folder: Path) -> None:
        """Run the fuzzer again after each round and each finding; `folder`: where this one leaves inputs."""
        folder.mkdir(exist_ok=True)
        failures = 0
        while (left := self.end - time.monotonic()) >= 1 and failures < 3:
            with self._lock:
                known = list(self.outcome.findings)
            if len(known) >= _MOST_FINDINGS:
                return
            before = set(folder.iterdir())
            ran = _run_fuzzer(self.outcome.target, min(left, _ROUND_SECONDS), self.memory, self.corpus, folder, known)
            (folder / _LOG).write_text(ran.log)
            if (folder / _CURRENT).exists() and _HANGS.search(ran.log):
                (folder / _CURRENT).rename(folder / f"slow-{time.monotonic_ns()}")
            new = sorted(path for path in set(folder.iterdir()) - before if path.name not in (_CURRENT, _LOG))
            with self._lock:
                executions = self._count(ran, new)
            failures = 0 if executions or new else failures + 1
        if failures:
            self.errors.append(ran.log[-3000:])

    def _count(self, ran: Round, new: list[Path]) -> int:
        outcome = self.outcome
        executions = _figure(ran.log, r"stat::number_of_executed_units:\s+(\d+)") or _figure(ran.log, r"^#(\d+)")
        outcome.executions += executions
        outcome.cpu_seconds += ran.cpu_seconds
        outcome.seconds = time.monotonic() - self.begun
        outcome.peak_memory_mb = max(outcome.peak_memory_mb, ran.peak_memory_mb)
        outcome.corpus = len(list(self.corpus.iterdir()))
        if new and _place(ran.log) not in outcome.findings:
            outcome.findings[_place(ran.log)] = str(new[0])
            new[0].with_name(new[0].name + ".txt").write_text(ran.log)
            print(f"finding: {_place(ran.log)}\n  {new[0]}", flush=True)
        if self.json_path is not None:
            self.json_path.write_text(json.dumps(asdict(outcome), indent=2) + "\n")
        return executions


def _run_fuzzer(target: str, seconds: float, memory: int, corpus: Path, findings: Path, known: list[str]) -> Round:
    """One run of libFuzzer, until a finding or the end of the time."""
    options = [f"-max_total_time={int(seconds)}", f"-rss_limit_mb={memory}", f"-timeout={_NEVER}"]
    options += [f"-artifact_prefix={findings}{os.sep}", "-print_final_stats=1", "-len_control=20"]
    options += [f"-max_len={_targets().MAX_BYTES[target]}", str(corpus), str(CORPUS / target)]
    command = [sys.executable, __file__, target, "--inside", json.dumps([known, options, str(findings / _CURRENT)])]
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": _import_path()}
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()
    started = next((float(line.split()[1]) for line in lines if line.startswith("STARTED ")), 0.0)
    cpu_seconds = used.ru_utime + used.ru_stime
    lines.append(f"ended after {seconds:.0f} s, {cpu_seconds:.0f} s of CPU time, with status {process.returncode}")
    text = "\n".join(lines[-_KEEP_LINES:])
    return Round(text, max(cpu_seconds - started, 0.0), used.ru_maxrss >> 10)


def _import_path() -> str:
    theirs = os.environ.get("PYTHONPATH")  # an empty one would be the current folder
    return os.pathsep.join([str(ROOT), str(ROOT / "tests" / "fuzz"), *([theirs] if theirs else [])])


def _figure(log: str, pattern: str) -> int:
    return max(map(int, re.findall(pattern, log, re.MULTILINE)), default=0)


def _place(log: str) -> str:
    """The error and the last line of our own code below it, or what libFuzzer calls it."""
    if _HANGS.search(log):
        lines = re.findall(r'^  File ".*/([^/]+)", line (\d+) in', log[log.index("Timeout (") :], re.MULTILINE)
        return "hangs at " + ":".join(lines[0] if lines else ["an unknown place"])
    marked = re.findall(r"^PLACE (.*)$", log, re.MULTILINE)
    summary = re.findall(r"^SUMMARY: (.*)$", log, re.MULTILINE)
    return marked[-1] if marked else summary[-1] if summary else "crash without a message"


def place_of(error: BaseException) -> str:
    """Type of an error and where in the package it was raised."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if "sparsetvm" in path or not place:
            place = f"{Path(path).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {place}"


class TooSlow(BaseException):
    """Not an Exception: what is fuzzed must not catch it."""


def too_slow(*_: object) -> NoReturn:
    raise TooSlow


def inside(target: str, known: list[str], arguments: list[str], current: Path) -> None:
    """The process that fuzzes: everything that is imported below is instrumented. current: where the input lies."""
    import atheris

    with atheris.instrument_imports(include=["sparsetvm"]):
        targets = _targets()
    atheris._trace_cmp = without_arrays(atheris._trace_cmp)
    run, mutate, seen = targets.TARGETS[target], targets.MUTATORS.get(target), Counter(known)
    signal.signal(signal.SIGPROF, too_slow)
    armed = 0.0

    def one_input(data: bytes) -> None:
        nonlocal armed
        current.write_bytes(data)
        if time.monotonic() > armed + 1:  # it starts a thread
            limit_memory()  # without what Atheris and libraries keep of earlier inputs
            faulthandler.dump_traceback_later(_INPUT_HANGS, exit=True)
            armed = time.monotonic()
        signal.setitimer(signal.ITIMER_PROF, _INPUT_SECONDS)
        try:
            run(data)
        except (Exception, TooSlow) as error:
            place = place_of(error)
            if place not in seen:  # one finding for each place: the others would hide what is still to be found
                print(f"PLACE {place}", flush=True)
                raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = mutate(data, rng) if mutate is not None and rng.random() < 0.7 else data
        return changed if changed != data and len(changed) <= most else atheris.Mutate(data, most)

    atheris.Setup([sys.argv[0], *arguments], one_input, custom_mutator=mutator)
    print(f"STARTED {time.process_time()}", flush=True)
    atheris.Fuzz()


def without_arrays(trace: Callable[..., object]) -> Callable[..., object]:
    """Atheris never frees the result of a comparison that it traces (3.0 and 3.1): those of arrays fill the memory."""

    def trace_scalars(left: object, right: object, how: int, *rest: object) -> object:
        if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
            return _COMPARE[how >> _COMPARE_SHIFT](left, right)
        return trace(left, right, how, *rest)

    return trace_scalars


def limit_memory() -> None:
    """As in the child that parses models, from what is used by now: too large an allocation fails instead of taking the
    machine down.
    """
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _EXTRA_ADDRESS_SPACE, resource.RLIM_INFINITY))


def _targets():  # type: ignore[no-untyped-def]
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fuzz")]
    import targets

    return targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--jobs", type=int, default=1, help="fuzzers side by side")
    parser.add_argument("--memory", type=int, default=2048, help="MB of resident memory that are a finding")
    parser.add_argument("--out", type=Path, default=Path("fuzz_out"))
    parser.add_argument("--json", type=Path, help="write the outcome")
    parser.add_argument("--repeat", type=Path, help="run one input and nothing else")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        known, arguments, current = json.loads(options.inside)
        inside(options.target, known, arguments, Path(current))
        return 0
    if options.repeat is not None:
        _targets().TARGETS[options.target](options.repeat.read_bytes())
        print("no error")
        return 0
    try:
        import atheris  # noqa: F401
    except ImportError:
        sys.exit("the fuzzer is not installed: pip install atheris")
    outcome = Fuzzing(options.target, options.seconds, options.memory, options.out, options.json).run(options.jobs)
    print(outcome)
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())
