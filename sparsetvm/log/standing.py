"""What the records of one config on one task say together: its time, how far to trust it, whether it fails."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from sparsetvm.core.config import Config
from sparsetvm.core.record import Record
from sparsetvm.core.workload import Workload
from sparsetvm.log.location import Source
from sparsetvm.log.relation import Relation

# A search times a config once, on a busy machine; a config known from there only must win by this much.
SEARCH_MARGIN = 1.10


class KnownRecord(Protocol):
    """A record and where it comes from."""

    @property
    def record(self) -> Record: ...
    @property
    def source(self) -> Source: ...


@dataclass(frozen=True)
class Standing:
    """One config on one task. known: the record whose time counts; failure: why it must not be used, "" when it may."""

    known: KnownRecord
    relation: Relation
    failure: str = ""

    @property
    def workload(self) -> Workload:
        return self.known.record.workload

    @property
    def retimed(self) -> bool:
        """True when the time was taken interleaved with dense or re-measured, not only in the search."""
        return not self.failure and self.known.record.stage != "search"

    @property
    def score(self) -> float:
        """Microseconds to compare configs by."""
        return self.known.record.best_us * (1.0 if self.retimed else SEARCH_MARGIN)

    def after(self, broken: Mapping[Config, str]) -> Standing:
        """This standing, knowing which configs failed on the very task that is asked for."""
        why = broken.get(self.known.record.config)
        return self if why is None or self.failure else replace(self, failure=f"on this very task: {why}")

    def describe(self) -> str:
        """The config with its time, for `log best --why`."""
        record = self.known.record
        time = record.status if record.status != "ok" else f"{record.best_us:.4g} us ({record.stage})"
        return f"{record.config} {time}"


def standings(known: Iterable[KnownRecord], relation: Relation) -> list[Standing]:
    """One Standing per config. Times of the stages "final" and "check" count before "search", later before earlier.

    A failure that is later than every success disqualifies the config. The order of the records does not matter, except
    that of two equal ones from different sources the first is named.
    """
    by_config: dict[Config, list[KnownRecord]] = defaultdict(list)
    for item in known:
        by_config[item.record.config].append(item)
    return [_standing(members, relation) for members in by_config.values()]


def contenders(group: Iterable[Standing]) -> list[Standing]:
    """The standings of one task to choose from: no failures, and nothing that a final round has passed over.

    What a search timed before or in the run of a re-timed config was there to be re-timed as well. If its single time
    is better all the same, that time is a fluke, and no reason to search again.
    """
    usable = [standing for standing in group if not standing.failure]
    retimed = [standing.known.record for standing in usable if standing.retimed]
    runs = {record.run for record in retimed} - {""}
    latest = max((record.time for record in retimed), default="")
    return [s for s in usable if s.retimed or (s.known.record.run not in runs and s.known.record.time >= latest)]


def _standing(members: list[KnownRecord], relation: Relation) -> Standing:
    good = [m for m in members if m.record.status == "ok"]
    failed = max((m for m in members if m.record.status != "ok"), key=lambda m: m.record.time, default=None)
    if failed is not None and all(m.record.time < failed.record.time for m in good):
        message = f" ({failed.record.message})" if failed.record.message else ""
        return Standing(failed, relation, f"{failed.record.status}{message}")
    retimed = [m for m in good if m.record.stage != "search"]
    if retimed:
        return Standing(max(retimed, key=lambda m: (m.record.time, -m.record.best_us)), relation)
    return Standing(min(good, key=lambda m: m.record.best_us), relation)
