"""Fuzz one part of sparsetvm for a given time, guided by coverage.

    pip install atheris
    python scripts/fuzz.py loader --seconds 3600 [--memory 2048] [--out fuzz_out] [--json OUT.json]

TARGET is loader, analysis, log or target (tests/fuzz/targets.py). What raises anything but the project's own errors,
takes longer than 20 seconds or more memory than allowed is a finding: its input is kept in `--out`, one for each place
where an error comes from, and the fuzzer goes on. New inputs that reach new code are kept in `--out` too, so that the
next run goes on from there. Prints executions, findings and peak memory; exit code 1 when there is a finding.

    python scripts/fuzz.py loader --repeat fuzz_out/loader/crash-...    # one input, with its traceback
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
NAMES = ("loader", "analysis", "log", "target")
_INPUT_SECONDS = 20
_EXTRA_ADDRESS_SPACE = 2 << 30  # what one input may allocate at once; more is a MemoryError, as in the limited child
_MOST_FINDINGS = 20
_KEEP_LINES = 400


@dataclass
class Outcome:
    """executions: inputs run. findings: place of each error -> the first input that reached it."""

    target: str
    seconds: float = 0.0
    executions: int = 0
    peak_memory_mb: int = 0
    corpus: int = 0
    findings: dict[str, str] = field(default_factory=dict)


def fuzz(target: str, seconds: float, memory: int, out: Path) -> Outcome:
    """Run the fuzzer again after each finding until the time is over."""
    begun, outcome, failures = time.monotonic(), Outcome(target), 0
    corpus, crashes = out / target / "corpus", out / target
    corpus.mkdir(parents=True, exist_ok=True)
    while (left := seconds - (time.monotonic() - begun)) >= 1 and len(outcome.findings) < _MOST_FINDINGS:
        before = set(crashes.glob("*-*"))
        log = _run_fuzzer(target, left, memory, corpus, crashes, list(outcome.findings))
        ran = _figure(log, r"stat::number_of_executed_units:\s+(\d+)") or _figure(log, r"^#(\d+)")
        outcome.executions += ran
        outcome.peak_memory_mb = max(outcome.peak_memory_mb, _figure(log, r"stat::peak_rss_mb:\s+(\d+)"))
        new = sorted(set(crashes.glob("*-*")) - before)
        if new:
            outcome.findings.setdefault(_place(log), str(new[0]))
            print(f"finding: {_place(log)}\n  {new[0]}", flush=True)
        elif not ran:
            failures += 1
            if failures == 3:
                sys.exit(f"the fuzzer does not start:\n{log[-3000:]}")
    outcome.seconds = time.monotonic() - begun
    outcome.corpus = len(list(corpus.iterdir()))
    return outcome


def _run_fuzzer(target: str, seconds: float, memory: int, corpus: Path, crashes: Path, known: list[str]) -> str:
    """One run of libFuzzer, until a finding or the end of the time; the end of what it printed."""
    options = [f"-max_total_time={int(seconds)}", f"-rss_limit_mb={memory}", f"-timeout={_INPUT_SECONDS}"]
    options += [f"-artifact_prefix={crashes}{os.sep}", "-print_final_stats=1", "-len_control=20"]
    options += [f"-max_len={_targets().MAX_BYTES[target]}", str(corpus), str(CORPUS / target)]
    command = [sys.executable, __file__, target, "--inside", json.dumps([known, options])]
    with tempfile.TemporaryFile() as log:
        subprocess.run(command, stdout=log, stderr=log, check=False, env={**os.environ, "PYTHONPATH": _import_path()})
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_KEEP_LINES:])


def _import_path() -> str:
    return os.pathsep.join([str(ROOT), str(ROOT / "tests" / "fuzz"), os.environ.get("PYTHONPATH", "")])


def _figure(log: str, pattern: str) -> int:
    return max(map(int, re.findall(pattern, log, re.MULTILINE)), default=0)


def _place(log: str) -> str:
    """The error and the last line of our own code below it, or what libFuzzer calls it."""
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


def inside(target: str, known: list[str], arguments: list[str]) -> None:
    """The process that fuzzes: everything that is imported below is instrumented."""
    import atheris

    with atheris.instrument_imports(include=["sparsetvm"]):
        targets = _targets()
    run, mutate, seen = targets.TARGETS[target], targets.MUTATORS.get(target), Counter(known)

    def one_input(data: bytes) -> None:
        try:
            run(data)
        except Exception as error:
            place = place_of(error)
            if place not in seen:  # one finding for each place: the others would hide what is still to be found
                print(f"PLACE {place}", flush=True)
                raise

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = mutate(data, rng) if mutate is not None and rng.random() < 0.7 else data
        return changed if changed != data and len(changed) <= most else atheris.Mutate(data, most)

    limit_memory()
    atheris.Setup([sys.argv[0], *arguments], one_input, custom_mutator=mutator)
    atheris.Fuzz()


def limit_memory() -> None:
    """As in the child that parses models: too large an allocation fails instead of taking the machine down."""
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
    parser.add_argument("--memory", type=int, default=2048, help="MB of resident memory that are a finding")
    parser.add_argument("--out", type=Path, default=Path("fuzz_out"))
    parser.add_argument("--json", type=Path, help="write the outcome")
    parser.add_argument("--repeat", type=Path, help="run one input and nothing else")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        inside(options.target, *json.loads(options.inside))
        return 0
    if options.repeat is not None:
        _targets().TARGETS[options.target](options.repeat.read_bytes())
        print("no error")
        return 0
    try:
        import atheris  # noqa: F401
    except ImportError:
        sys.exit("the fuzzer is not installed: pip install atheris")
    outcome = fuzz(options.target, options.seconds, options.memory, options.out)
    print(f"{outcome.target}: {outcome.executions} executions in {outcome.seconds:.0f} s", end=", ")
    print(f"{len(outcome.findings)} findings, peak memory {outcome.peak_memory_mb} MB", end=", ")
    print(f"{outcome.corpus} inputs that reach new code")
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(outcome), indent=2) + "\n")
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())
