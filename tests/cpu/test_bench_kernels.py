"""scripts/bench_kernels.py from the command line to its JSON, on one small matrix."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]


def bench(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "bench_kernels.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_bench_kernels_writes_a_documented_row_for_a_small_matrix(tmp_path):
    mask = np.random.default_rng(0).random((24, 40)) < 0.2
    counts = mask.sum(axis=1)
    columns = np.nonzero(mask)[1]
    np.savez(
        tmp_path / "one.npz",
        **{"w|s": np.array([*mask.shape, columns.size]), "w|n": counts, "w|d": columns, "w|raw": np.zeros(0)},
    )
    out = tmp_path / "out.json"
    done = bench(
        "--suite", tmp_path / "one.npz", "--n", 20, "--against", "numpy,ort,scipy", "--log-dir", tmp_path / "log",
        "--json", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    (row,) = result["rows"]
    assert (row["m"], row["k"], row["n"], row["suite"], row["group"]) == (24, 40, 20, "file", "one")
    assert set(row["baselines_us"]) == {"numpy", "onnxruntime", "scipy", "sparsetvm-dense"}
    assert row["best_dense"] in {"numpy", "onnxruntime", "sparsetvm-dense"}
    assert row["rel_error"] < 1e-5
    assert row["ours_us"] > 0 < row["ours_packed_us"]
    assert result["summary"]["failed"] == 0
    assert list(result["summary"]["geomean_vs_random"]) == ["one"]
    assert result["machine"]["fma_peak_gflops"] > 0
    documented = (ROOT / "docs" / "json.md").read_text()
    keys = [*result, *row, *row["baselines_us"], *result["summary"], "fma_peak_gflops"]
    assert [key for key in keys if f"`{key}`" not in documented] == []
    assert not (tmp_path / "log").exists()  # without a budget nothing is measured for the log


def test_bench_kernels_ends_with_the_exit_code_of_the_error():
    done = bench("--target", "cuda,sm_90")
    assert done.returncode == 2
    assert "cannot be measured" in done.stderr
