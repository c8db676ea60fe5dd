"""One row of bench_models: a network tuned, compiled, verified and timed, each step in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsetvm.core.manifest import read_manifest
from sparsetvm.runtime.arrays import random_arrays

NAMES = {"ort": "onnxruntime"}  # competitor on the command line -> key of the JSON
_DEEPSPARSE_SECONDS = 3.0
_TORCH_SECONDS = 2.0
_PRECISIONS = "fp32,tf32,fp16"


class Failed(Exception):
    """A step of one model failed; the text is its last message."""


@dataclass(frozen=True)
class ModelBench:
    """What is the same for all models. against: names of `sparsetvm bench`; deepsparse: an interpreter that has it."""

    target: str
    threads: int
    budget: str
    against: Sequence[str]
    log_dir: str | None
    records: Sequence[str]
    deepsparse: Path | None

    def build(self, model: Path, folder: Path) -> dict[str, Any]:
        """Tune and compile a model into a library in `folder`; what `row` wants to know of it. Raises Failed."""
        logs = [*(("--log-dir", self.log_dir) if self.log_dir else ())]
        logs += [option for path in self.records for option in ("--records", path)]
        options = ("--target", self.target, "--threads", str(self.threads), *logs, "-o", str(_library(model, folder)))
        if self.budget != "0":
            return run_step(folder, "tune", str(model), *options, "--budget", self.budget)
        compiled = run_step(folder, "compile", str(model), *options)
        return {"tasks": compiled["layers"], "trials_run": 0, "seconds": 0.0}

    def row(self, model: Path, folder: Path, tuned: dict[str, Any]) -> dict[str, Any]:
        """The row of a model whose library `build` has left in `folder`. Raises Failed.

        `source` says where the kernels come from: tuned in this run, or the log's relations.
        """
        library, inputs = _library(model, folder), folder / f"{model.stem}.npz"
        threads = ("--threads", str(self.threads))
        verified = run_step(folder, "verify", str(library), "--reference", str(model))
        _write_inputs(library, inputs)
        if self.target.startswith("cuda"):
            return self._gpu_row(model, library, inputs, tuned, verified)
        against = ("--against", ",".join(self.against) or "none", "--inputs", str(inputs))
        timed = run_step(folder, "bench", str(library), "--reference", str(model), *threads, *against)
        baselines = {NAMES.get(name, name): latency["median"] for name, latency in timed["against"].items()}
        notes: list[str] = []
        if self.deepsparse is not None:
            try:
                baselines["deepsparse"] = time_deepsparse(self.deepsparse, model, inputs, self.threads)["median"]
            except Failed as error:
                notes.append(str(error))
        ours = timed["latency_ms"]["median"]
        return {
            "model": model.stem,
            "threads": timed["threads"],
            "ours_ms": ours,
            "baselines_ms": baselines,
            "speedup": {name: ms / ours for name, ms in baselines.items()},
            "rel_error": verified["rel_l2_error"],
            "source": "+".join(sorted({task["source"] for task in tuned["tasks"]})),
            "trials": tuned["trials_run"],
            "tune_seconds": tuned["seconds"],
            "notes": notes,
        }

    def _gpu_row(
        self, model: Path, library: Path, inputs: Path, tuned: dict[str, Any], verified: dict[str, Any]
    ) -> dict[str, Any]:
        """Beside PyTorch, everything on the GPU; `*_wait_ms` are single inferences that the host waits for."""
        timed = time_torch(library, model, inputs, _PRECISIONS if "torch" in self.against else "")
        ours, notes = timed["gpu"].pop("ours"), []
        if "dense" in self.against:
            options = ("--reference", str(model), "--against", "dense", "--inputs", str(inputs))
            dense = run_step(library.parent, "bench", str(library), *options)
            timed["gpu"]["dense"] = dense["against"]["dense"]["median"] / dense["latency_ms"]["median"] * ours
            notes.append("dense: measured with waiting, scaled to ours")
        return {
            "model": model.stem,
            "threads": 1,
            "ours_ms": ours,
            "ours_wait_ms": timed["wait"].pop("ours"),
            "baselines_ms": timed["gpu"],
            "baselines_wait_ms": timed["wait"],
            "speedup": {name: ms / ours for name, ms in timed["gpu"].items()},
            "rel_error": verified["rel_l2_error"],
            "torch_difference": timed["difference"],
            "source": "+".join(sorted({task["source"] for task in tuned["tasks"]})),
            "trials": tuned["trials_run"],
            "tune_seconds": tuned["seconds"],
            "notes": notes,
        }


def _library(model: Path, folder: Path) -> Path:
    return folder / f"{model.stem}.so"


def time_torch(library: Path, model: Path, inputs: Path, precisions: str) -> dict[str, Any]:
    """What torch_worker.py prints. Raises Failed with its last words."""
    worker = Path(__file__).with_name("torch_worker.py")
    command = [sys.executable, str(worker), str(library), str(model), str(inputs), str(_TORCH_SECONDS), precisions]
    paths = [str(worker.parents[1]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return result
    raise Failed(f"PyTorch did not run: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def run_step(folder: Path, *arguments: str) -> dict[str, Any]:
    """Run `sparsetvm ARGUMENTS` and return its JSON. Raises Failed with what it printed last."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        out = Path(own, "result.json")
        command = [sys.executable, "-m", "sparsetvm", *arguments, "--json", str(out)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        result: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    if done.returncode != 0:
        last = result.get("error", {}).get("message") or done.stderr.strip()[-300:] or "no message"
        raise Failed(f"sparsetvm {arguments[0]} exited with {done.returncode}: {last}")
    return result


def time_deepsparse(interpreter: Path, model: Path, inputs: Path, threads: int) -> dict[str, Any]:
    """Latency in DeepSparse, in milliseconds, right after the others but not in turn with them. Raises Failed.

    inputs: .npz with one array per input of the model.
    """
    worker = Path(__file__).with_name("deepsparse_worker.py")
    command = [str(interpreter), str(worker), str(model), str(inputs), str(threads), str(_DEEPSPARSE_SECONDS)]
    environment = {**os.environ, "NM_DISABLE_ANALYTICS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode == 0:
            result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
            return result
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    except (OSError, ValueError, IndexError) as error:
        last = str(error)
    raise Failed(f"DeepSparse did not run: {last}")


def _write_inputs(library: Path, path: Path) -> None:
    """Random inputs for all competitors, of the shapes that the library was compiled for."""
    found = read_manifest(library)
    if found is None:
        raise Failed(f"no manifest beside {library}")
    np.savez(path, **random_arrays(found[1].inputs))  # type: ignore[arg-type]
