"""Measure the configs of `cuda_templates` on GPU 0 and print one JSON line per result. Run by test_cuda_measure.py."""

from __future__ import annotations

import json
import sys

import numpy as np

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import device_fingerprint, parse_target
from sparsetvm.core.task import Task
from sparsetvm.core.workload import Epilogue, Workload
from sparsetvm.measure.pool import Measurer


def make_task(cold: bool) -> Task:
    weight = np.random.default_rng(0).standard_normal((12, 20)).astype(np.float32)
    pattern = PatternSummary("dense", (1, 1), 1.0, 1.0, 0, "d")
    workload = Workload("matmul", 12, 20, 5, PLAIN, PLAIN, Epilogue(bias=True), pattern, cold=cold)
    return Task("layer", workload, weight, np.ones(12, np.float32), ["layer"])


def main(jobs: int, cold: bool) -> None:
    target, task = parse_target("cuda"), make_task(cold)
    configs = [Config.of("cuda.test_rows", block=block) for block in (64, 128, 256, 64)]
    device = device_fingerprint(target)
    with Measurer(target, jobs=jobs, templates="cuda_templates", repeats=3) as measurer:
        found = [*measurer.measure(task, configs), *measurer.retime(task, configs[:3], 2)]
    lines: list[object] = [[result.status, list(result.times_us), result.message] for result in found]
    lines.append([device.model, device.isa, device.cores, device.clocks])
    sys.stdout.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "cold")
