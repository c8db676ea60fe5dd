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


def run(driver: Path, script: str, *arguments: str) -> str:
    """Standard output of a script of this folder on the test GPU."""
    paths = [str(HERE), *(path for path in sys.path if path)]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("jobs", "mode"), [(1, "warm"), (2, "warm"), (1, "cold")])
def test_gpu_candidates_are_checked_timed_and_survived(driver, jobs, mode):
    lines = run(driver, "measure_on_fake_gpu.py", str(jobs), mode).splitlines()
    *results, device = map(json.loads, lines)
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


def test_gpu_that_disappears_ends_the_tune_and_is_blamed_on_no_candidate(driver, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_GPU_GONE", str(tmp_path / "gone"))
    message, code, statuses = json.loads(run(driver, "lose_fake_gpu.py"))
    assert code == 4
    assert "driver does not start" in message
    assert "the same command goes on from there" in message
    # The candidate that ran at that moment broke its context; nothing was asked of others.
    assert 2 <= len(statuses) <= 3
    assert statuses.count("ok") >= 1


def test_kernel_bench_times_layers_on_the_gpu(driver, tmp_path):
    options = ["--target", "cuda", "--suite", "grid", "--n", "1", "--limit", "1", "--against", "none"]
    result = json.loads(run(driver, "bench_on_fake_gpu.py", *options, "--log-dir", str(tmp_path)))
    (row,) = result["rows"]
    assert (row["m"], row["k"], row["n"]) == (512, 512, 1)
    assert row["ours_us"] == pytest.approx(3.0, rel=1e-3)
    assert row["ours_cold_us"] == pytest.approx(3.0, rel=1e-3)
    assert row["baselines_us"] == {"sparsetvm-dense": row["ours_us"]}
    assert result["machine"]["device"] == "Test GPU"
    assert result["machine"]["fma_peak_gflops"] == pytest.approx(132 * 256 * 1.98)
