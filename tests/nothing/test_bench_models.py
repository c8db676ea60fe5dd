"""bench_models builds one library at a time, or all of them before anything is timed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, cast

import bench_models
import pytest
from benchlib.model_row import Failed, ModelBench

from sparsetvm.errors import UsageError

MODELS = [Path("a"), Path("broken"), Path("c")]


class Builds:
    """Stands in for ModelBench: notes what was built."""

    def __init__(self) -> None:
        self.built: list[str] = []

    def build(self, model: Path, folder: Path) -> dict[str, Any]:
        self.built.append(model.stem)
        if model.stem == "broken":
            raise Failed("broken")
        return {"model": model.stem}


def test_one_job_builds_each_model_when_it_is_its_turn() -> None:
    runner = Builds()
    first, *_ = bench_models.build_all(cast("ModelBench", runner), MODELS, Path(), 1)
    assert not runner.built
    assert first() == {"model": "a"}
    assert runner.built == ["a"]


def test_several_jobs_build_all_models_first_and_a_failure_stays_with_its_model() -> None:
    runner = Builds()
    first, broken, last = bench_models.build_all(cast("ModelBench", runner), MODELS, Path(), 2)
    assert sorted(runner.built) == ["a", "broken", "c"]
    assert (first(), last()) == ({"model": "a"}, {"model": "c"})
    with pytest.raises(Failed, match="broken"):
        broken()


@pytest.mark.parametrize(("jobs", "budget"), [(0, "0"), (2, "5m")])
def test_jobs_that_would_disturb_a_tune_are_refused(jobs: int, budget: str) -> None:
    with pytest.raises(UsageError, match="--build-jobs"):
        bench_models.bench(argparse.Namespace(build_jobs=jobs, budget=budget))


def test_what_is_measured_is_kept_when_a_later_model_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rows(Builds):
        def __init__(self, *_: object) -> None:
            super().__init__()

        def row(self, model: Path, folder: Path, built: dict[str, Any]) -> dict[str, Any]:
            if model.stem == "b":
                raise KeyboardInterrupt
            return {"model": model.stem, "ours_ms": 1.0, "baselines_ms": {}, "speedup": {}, "rel_error": 0.0,
                    "source": "default", "notes": []}  # fmt: skip

    monkeypatch.setattr(bench_models, "ModelBench", Rows)
    models = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    out = tmp_path / "out.json"
    args = argparse.Namespace(
        build_jobs=1, budget="0", target="cpu", threads=2, allow_tf32=False, allow_fp16=False, models=models,
        against="none", log_dir=None, records=[], deepsparse_python=None, output=tmp_path, json=str(out),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        bench_models.bench(args)
    assert [row["model"] for row in json.loads(out.read_text())["rows"]] == ["a"]
