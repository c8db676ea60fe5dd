"""Tune on a fleet whose workers are killed again and again; nothing may be lost, and two workers must pay.

    pip install 'sparsetvm[fleet]'
    python scripts/stress_fleet.py [--trials 400] [--seed 0] [--json OUT.json] [--only tune|throughput]

Loopback: a tracker and four workers of a simulated device (kernels that sleep, one in twenty crashes). A tune of 400
trials runs while the servers of two workers are killed at random; a fifth worker claims to be another device. Then as
many trials run on one worker and on two. Checked:

- every trial has one record; the log reads back without a bad line; crashing kernels, and no others, are crashes;
- every record names the worker that really measured it, as the worker's own diary says, and none the fifth;
- two workers are at least 1.7 times as fast as one.

Exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from checklib.fleet_field import Field, field

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN
from sparsetvm.core.pattern import PatternSummary, pattern_digest
from sparsetvm.core.record import Record
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.log.journal import append, journal_path, read_records
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.measure import fleet_server
from sparsetvm.measure.fleet import Fleet
from sparsetvm.measure.fleet_worker import Supervisor, WorkerOptions
from sparsetvm.search.budget import EFFORTS, TuneOptions
from sparsetvm.search.tuner import tune_tasks

_TEMPLATES = Path(__file__).parents[1] / "tests" / "tvm"
_DIARY, _WHO = "STRESS_FLEET_DIARY", "STRESS_FLEET_WHO"
_STRANGER = "another device"
_SPEEDUP = 1.7


# --- workers: this script again, as what `sparsetvm worker` runs, with a fingerprint and a diary ----------------------


def serve(arguments: list[str]) -> int:
    """A server that claims to be the device named in the environment and writes down what it measures."""
    who, diary = os.environ[_WHO], os.environ[_DIARY]
    real = fleet_server.device_fingerprint

    def claimed(target: Any) -> Any:
        model = _STRANGER if who == "stranger" else "simulated device"
        return msgspec.structs.replace(real(target), model=model, driver=who)

    class Station(fleet_server.Station):
        def _measured(self, measurer: Any, request: Any) -> Any:
            answer = super()._measured(measurer, request)
            with open(diary, "a", encoding="utf-8") as file:
                for result in answer.results:
                    file.write(json.dumps([who, str(result.config)]) + "\n")
            return answer

    fleet_server.device_fingerprint = claimed
    fleet_server.Station = Station  # type: ignore[misc]
    return fleet_server.main(arguments)


def supervise(tracker: str, key: str, port: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[port % len(cores)]})  # else all candidates of the host run on its last core
    command = (sys.executable, __file__, "serve")
    options = WorkerOptions(tracker, key, port=port, templates="fleet_templates", command=command)
    supervisor = Supervisor(options, lambda line: None)
    signal.signal(signal.SIGTERM, supervisor.stop)
    supervisor.run()


def start_worker(there: Field, name: str, key: str, diary: Path) -> None:
    arguments = [__file__, "supervise", there.address, key, str(there.worker_port())]
    there.start(name, arguments, {_WHO: name, _DIARY: str(diary)})


# --- what is tuned ----------------------------------------------------------------------------------------------------


def small_task(name: str, size: int) -> Task:
    weight = np.random.default_rng(size).standard_normal((size, 16)).astype(np.float32)
    pattern = PatternSummary("unstructured", (1, 1), 1.0, 1.0, 0, pattern_digest(weight))
    return Task(name, Workload("matmul", size, 16, 4, PLAIN, PLAIN, Epilogue(), pattern), weight, None, [name])


def open_fleet(address: str, key: str) -> Fleet:
    return Fleet(address, key, threads=1, patience=120.0)


def tune(trials: int, seed: int, folder: Path) -> dict[str, Any]:
    """Trials while workers die."""
    from fleet_templates import TEMPLATES, crashes

    rng, ended, diary = random.Random(seed), threading.Event(), folder / "diary.jsonl"
    with field() as there:
        for name in ("calm 1", "calm 2", "victim 1", "victim 2", "stranger"):
            if name == "stranger":
                open_fleet(there.address, "sim")  # the first worker that answers says what the fleet is
            start_worker(there, name, "sim", diary)
        kills: Counter[str] = Counter()

        def kill() -> None:
            while not ended.wait(rng.uniform(5.0, 20.0)):
                victim = rng.choice(("victim 1", "victim 2"))
                kills[victim] += there.kill_a_process_of(victim, rng)

        fleet = open_fleet(there.address, "sim")
        if fleet.device.model == _STRANGER:
            raise SystemExit("the stranger came first: run it again")
        tasks = [small_task(f"task {size}", size) for size in (8, 12)]
        journal = journal_path(folder, fleet.device)
        index = RecordIndex.open(folder, [])
        appended: list[Record] = []

        def keep(records: list[Record]) -> None:
            append(journal, *records)
            appended.extend(records)

        threading.Thread(target=kill, daemon=True).start()
        began = time.monotonic()
        # All configs take 20 ms: a model that sees this would end the tune long before so many trials.
        EFFORTS["max"] = replace(EFFORTS["max"], least_gain=0.0)
        options = TuneOptions("max", trials, None, 10**6, False, uuid.uuid4().hex[:12])
        with fleet.measurer(jobs=2, repeats=3, templates="fleet_templates", seed=seed) as measurer:
            outcomes = tune_tasks(
                tasks, fleet.target, options, index, keep, measurer, lambda event: None, seed,
                templates=lambda workload, target: list(TEMPLATES.values()), device=fleet.device,
            )  # fmt: skip
        seconds = time.monotonic() - began
        ended.set()
    return judge(journal, trials, appended, outcomes, diary, crashes) | {
        "seconds": seconds,
        "kills": dict(kills),
    }


def judge(
    journal: Path, trials: int, appended: list[Record], outcomes: Any, diary: Path, crashes: Any
) -> dict[str, Any]:
    read = read_records(journal)
    search = [record for record in read.records if record.stage == "search"]
    diaries = Counter(tuple(json.loads(line)) for line in diary.read_text().splitlines())
    wrong = []
    if read.bad or len(read.records) != len(appended):
        wrong.append(f"{len(appended)} records written, {len(read.records)} read, {len(read.bad)} bad lines")
    if len(search) != trials or sum(outcome.trials for outcome in outcomes) != trials:
        wrong.append(f"{len(search)} search records for {trials} trials")
    for record in read.records:
        who = record.device.driver
        if record.device.model == _STRANGER or (record.status == "ok" and not diaries[who, str(record.config)]):
            wrong.append(f"{record.config} is attributed to {who}, who did not measure it")
    for record in search:
        if (record.status == "crash") != crashes(record.config):
            wrong.append(f"{record.config}: {record.status} {record.message}")
    return {
        "trials": len(search),
        "statuses": dict(Counter(record.status for record in search)),
        "by_worker": dict(Counter(record.device.driver for record in read.records)),
        "wrong": wrong[:20],
    }


def throughput(count: int, folder: Path) -> dict[str, Any]:
    """Trials per second on one worker and on two."""
    task = small_task("throughput", 8)
    speeds: dict[int, float] = {}
    with field() as there:
        for workers in (1, 2):
            key = f"sim{workers}"
            for number in range(workers):
                start_worker(there, f"{key} {number}", key, folder / "diary.jsonl")
            fleet = open_fleet(there.address, key)
            while fleet.tracker.count() < workers:
                time.sleep(0.2)
            configs = [Config.of("test.sleeper", copy=20 * at) for at in range(count + 8)]
            with fleet.measurer(jobs=2, repeats=15, templates="fleet_templates") as measurer:
                measurer.measure(task, configs[:8])  # workers import TVM and compute references
                began = time.monotonic()
                results = measurer.measure(task, configs[8:])
                speeds[workers] = count / (time.monotonic() - began)
                if not all(result.ok for result in results):
                    raise SystemExit(f"failed: {[result.message for result in results if not result.ok][:3]}")
    return {"trials_per_second": speeds, "speedup": speeds[2] / speeds[1]}


def main() -> int:
    if sys.argv[1:2] == ["serve"]:
        return serve(sys.argv[2:])
    if sys.argv[1:2] == ["supervise"]:
        supervise(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["tune", "throughput"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that workers end too
    sys.path.insert(0, str(_TEMPLATES))
    os.environ["PYTHONPATH"] = f"{_TEMPLATES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    figures: dict[str, Any] = {"schema": 1}
    with tempfile.TemporaryDirectory(prefix="stress-fleet-") as folder:
        if args.only != "throughput":
            figures["tune"] = tune(args.trials, args.seed, Path(folder))
            print(json.dumps(figures["tune"], indent=2), flush=True)
        if args.only != "tune":
            figures["throughput"] = throughput(40, Path(folder))
            print(json.dumps(figures["throughput"], indent=2), flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))
    failed = bool(figures.get("tune", {}).get("wrong"))
    failed |= figures.get("throughput", {}).get("speedup", _SPEEDUP) < _SPEEDUP
    print("FAILED" if failed else "passed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
