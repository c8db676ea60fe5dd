"""Which config a layer is timed with: that of the tuning log, else one tuned within a budget, else the default."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

from sparsetvm.build.choose import choose, open_index
from sparsetvm.core.config import Config
from sparsetvm.core.results import Event
from sparsetvm.core.target import Target, device_fingerprint
from sparsetvm.core.task import Task
from sparsetvm.measure.pool import Measurer, default_jobs
from sparsetvm.search.budget import TuneOptions
from sparsetvm.search.candidates import candidates_of, known_dense
from sparsetvm.search.run import TuneRun


class ConfigSource:
    """Hands out configs as `sparsetvm tune` (with a budget) or `sparsetvm compile` (without) would choose them.

    budget: seconds of search for each task that no record settles; what is measured goes to the log.
    """

    def __init__(
        self, target: Target, budget: float, log_dir: Path | None = None, records: Sequence[Path] = (), seed: int = 0
    ) -> None:
        self._target, self._budget, self._log_dir, self._records, self._seed = target, budget, log_dir, records, seed
        self._index = open_index(log_dir, list(records))
        self._device = device_fingerprint(target)
        self._run = uuid.uuid4().hex[:12]

    def choose(self, task: Task) -> tuple[Config, str]:
        """(config, source as in TaskReport). Raises NoCandidateError, KeyboardInterrupt when a search was stopped."""
        if self._budget <= 0:
            choice = choose({task.name: task}, self._target, self._index, self._device)[task.name]
            return choice.config, choice.source
        options = TuneOptions(seconds=self._budget, run=self._run)
        run = TuneRun(
            "bench_kernels", [task], self._target, options, self._records, self._log_dir, self._seed,
            self._open_measurer, _silent,
        )  # fmt: skip
        if run.tune("all").interrupted:
            raise KeyboardInterrupt
        self._index = run.index
        return run.outcomes[0].config, run.outcomes[0].source

    def dense(self, task: Task) -> list[Config]:
        """Dense configs of the layer: the default of each dense template and the best known one."""
        candidates = candidates_of(task.workload, self._target)
        found = [choice.default for choice in candidates.choices if choice.dense]
        known = known_dense(self._index, task.workload, candidates, self._device)
        return found if known is None or known.config in found else [*found, known.config]

    def _open_measurer(self, repeats: int) -> Measurer:
        return Measurer(self._target, jobs=default_jobs(self._target), repeats=repeats, seed=self._seed)


def _silent(_: Event) -> None:
    pass
