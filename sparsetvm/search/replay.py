"""A measurer that answers from a table and runs nothing: search code is tested and compared without hardware.

The idea is Kernel Tuner's simulation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sparsetvm.core.config import Config
from sparsetvm.core.record import Record
from sparsetvm.core.task import Task
from sparsetvm.search.trial import Measured, OnResult

CostOf = Callable[[Task, Config], Measured]


class ReplayMeasurer:
    """Answers with `cost`; notes every config it was asked for in `asked` and every re-timed one in `retimed`."""

    jobs = lanes = 1

    def __init__(self, cost: CostOf) -> None:
        self._cost = cost
        self.asked: list[tuple[str, Config]] = []
        self.retimed: list[tuple[str, Config]] = []
        self.closed = False

    def measure(self, task: Task, configs: Sequence[Config], on_result: OnResult | None = None) -> list[Measured]:
        results = []
        for config in configs:
            self.asked.append((task.name, config))
            result = self._cost(task, config)
            results.append(result)
            if on_result is not None:
                on_result(result)
        return results

    def retime(self, task: Task, configs: Sequence[Config], rounds: int) -> list[Measured]:
        self.retimed += [(task.name, config) for config in configs]
        return [self._cost(task, config) for config in configs]

    def close(self) -> None:
        self.closed = True


def cost_from_records(records: Iterable[Record]) -> CostOf:
    """Costs from measured records; a config that was never measured is "invalid"."""
    table: dict[tuple[str, Config], Record] = {}
    for record in records:
        key = record.workload.id, record.config
        if key not in table or record.best_us < table[key].best_us:
            table[key] = record

    def cost(task: Task, config: Config) -> Measured:
        record = table.get((task.workload.id, config))
        if record is None:
            return Measured(config=config, status="invalid", message="not in the table")
        return Measured(
            config=config,
            status=record.status,
            times_us=record.times_us,
            error=record.error,
            message=record.message,
            build_seconds=record.build_seconds,
        )

    return cost
