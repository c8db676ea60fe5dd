"""Tune on a GPU that disappears after the second trial; print the error and the log. Run by test_cuda_measure.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import cuda_templates
from measure_on_fake_gpu import make_task

from sparsetvm.core.record import Record
from sparsetvm.core.target import parse_target
from sparsetvm.errors import SparseTvmError
from sparsetvm.log.lookup import RecordIndex
from sparsetvm.measure.pool import Measurer
from sparsetvm.search.budget import TuneOptions
from sparsetvm.search.tuner import tune_tasks


def main() -> None:
    target, kept = parse_target("cuda"), list[Record]()

    def append(records: list[Record]) -> None:
        kept.extend(records)
        if len(kept) >= 2:
            Path(os.environ["FAKE_GPU_GONE"]).touch()

    said = ["no error", 0]
    with Measurer(target, jobs=1, templates="cuda_templates", repeats=1) as measurer:
        try:
            tune_tasks(
                [make_task(cold=False)], target, TuneOptions(effort="quick", trials=8), RecordIndex(), append, measurer,
                lambda event: None, templates=lambda workload, target: list(cuda_templates.TEMPLATES.values()),
            )  # fmt: skip
        except SparseTvmError as error:
            said = [str(error), error.exit_code]
    sys.stdout.write(json.dumps([*said, [record.status for record in kept]]) + "\n")


if __name__ == "__main__":
    main()
