"""Candidates for a GPU, measured through a driver that computes on the host: verdicts, times and lost contexts.

The driver is found by the dynamic linker, so measuring runs in a process with a library path of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_tools import needs_c_compiler, needs_cuda_compiler

HERE = Path(__file__).parent


pytestmark = [needs_cuda_compiler, needs_c_compiler]


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    command = ["cc", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1")]
    subprocess.run([*command, str(HERE / "fake_driver.c")], check=True)
    return folder


def measure(driver: Path, jobs: int, mode: str) -> list[list]:
    paths = [str(HERE), *(path for path in sys.path if path)]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(HERE / "measure_on_fake_gpu.py"), str(jobs), mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("jobs", "mode"), [(1, "warm"), (2, "warm"), (1, "cold")])
def test_gpu_candidates_are_checked_timed_and_survived(driver, jobs, mode):
    *results, device = measure(driver, jobs, mode)
    good, overrun, lost, again, good_final, overrun_final, lost_final = results
    for result in (good, again, good_final):
        assert result[0] == "ok", result
        assert result[1] == pytest.approx([3.0] * len(result[1]), rel=1e-3)
    for result in (overrun, overrun_final):
        assert (result[0], result[2]) == ("wrong_answer", "the kernel wrote outside its buffers")
    for result in (lost, lost_final):
        assert result[0] == "crash"
        assert "CUDA_ERROR_ILLEGAL_ADDRESS" in result[2]
    assert device == ["Test GPU", "sm_90", 132, "1980/2619 MHz"]
