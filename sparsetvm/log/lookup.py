"""Which of all known records answers for a task: the decision that `tune` and `compile` take before any search."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sparsetvm.core.config import Config
from sparsetvm.core.record import Record
from sparsetvm.core.target import DeviceFingerprint, ToolchainFingerprint, toolchain_fingerprint
from sparsetvm.core.workload import Workload
from sparsetvm.log.journal import Entry, scan
from sparsetvm.log.location import LogFile, Source, log_files
from sparsetvm.log.relation import Relation, distance, relate
from sparsetvm.log.standing import Standing, contenders, standings

Valid = Callable[[Config, int, str], bool]
"""`valid(config, version, space)`: the local template of that name has this version, its space for the task has this
fingerprint and declares the config. An empty `space` asks for the version and the config alone."""

_WHY_LINES = 20


@dataclass(frozen=True)
class Known:
    """A record and where it comes from."""

    record: Record
    source: Source
    workload_id: str


DecisionKind = Literal["exact", "compatible", "near", "none"]


@dataclass(frozen=True)
class Decision:
    """What to use for a task.

    kind: "exact" (use), "compatible" (use, measure once), "near" (only seeds for a search are known) or "none".
    record, source: of the exact or compatible choice, else None.
    why: a line for every config considered, the choice first, and one for each group of records that were not.
    """

    kind: DecisionKind
    record: Record | None = None
    source: Source | None = None
    why: list[str] = field(default_factory=list)


class RecordIndex:
    """All records of some logs, read when first asked. `bad` maps a log to its skipped lines once it was read."""

    def __init__(self, files: Iterable[LogFile] = ()) -> None:
        self._unread = list(files)
        self._by_op: dict[str, list[Known]] = defaultdict(list)
        self._seen: set[str] = set()
        self._ids: dict[Workload, str] = {}
        self.bad: dict[Path, list[tuple[int, str]]] = {}

    @classmethod
    def open(cls, log_dir: Path | None, extra: Sequence[Path | str] = (), *, shipped: bool = True) -> RecordIndex:
        """Index of --records (`extra`), the log folder, SPARSETVM_RECORDS and the shipped logs, in that order.

        Raises LogError for a path that does not exist; a newer schema is reported when the index is first used.
        """
        return cls(log_files(log_dir, extra, shipped=shipped))

    def add(self, record: Record, source: Source = "log") -> None:
        """Make a fresh record known, after it was appended to the journal."""
        workload_id = self._ids.get(record.workload)
        if workload_id is None:
            workload_id = self._ids[record.workload] = record.workload.id
        self._by_op[record.workload.op].append(Known(record, source, workload_id))

    def __len__(self) -> int:
        self._load()
        return sum(map(len, self._by_op.values()))

    def records(self) -> list[Record]:
        """All records, in look-up order within an operator."""
        self._load()
        return [known.record for group in self._by_op.values() for known in group]

    def skipped(self) -> list[str]:
        """One sentence for each log that holds lines that cannot be used."""
        self._load()
        return [
            f"{path}: {len(bad)} bad line{'s' if len(bad) > 1 else ''} skipped (first: line {bad[0][0]}, {bad[0][1]}); "
            "`sparsetvm log check --repair` takes them out"
            for path, bad in self.bad.items()
            if bad
        ]

    def _load(self) -> None:
        for file in self._unread:
            bad = self.bad.setdefault(file.path, [])
            for item in scan(file.path):
                if not isinstance(item, Entry):
                    bad.append(item)
                elif item.sum not in self._seen:
                    self._seen.add(item.sum)
                    self.add(item.record, file.source)
        self._unread = []

    def _related(
        self, workload: Workload, device: DeviceFingerprint, toolchain: ToolchainFingerprint | None
    ) -> list[tuple[Known, Relation]]:
        self._load()
        ours, wanted = toolchain or toolchain_fingerprint(), workload.id
        cache: dict[tuple[str, DeviceFingerprint, ToolchainFingerprint], Relation] = {}
        related = []
        for known in self._by_op.get(workload.op, []):
            key = (known.workload_id, known.record.device, known.record.toolchain)
            if key not in cache:
                cache[key] = relate(known.record, workload, device, ours, known.workload_id == wanted)
            related.append((known, cache[key]))
        return related

    def best(
        self,
        workload: Workload,
        device: DeviceFingerprint,
        valid: Valid,
        reuse: bool = True,
        toolchain: ToolchainFingerprint | None = None,
    ) -> Decision:
        """The best record that the rules of reuse (relation.py) allow, dense templates included.

        Records of exactly this task go before those of others, whichever way they fit; among compatible workloads the
        closest one with re-timed results goes first.
        What a final round passed over is not taken, nor what lost to a template that has a new version since: that may
        win again. Equal times go to the earlier source. reuse=False takes nothing.
        """
        if not reuse:
            return Decision("none", why=["reuse is off: no record was looked at"])
        related = self._related(workload, device, toolchain)
        groups, left = _group(related, valid, workload)
        why: list[str] = []
        for at, group in enumerate(groups):
            chosen = min(contenders(group), key=lambda s: s.score, default=None)
            lost_to = _outdated_winner(related, valid, chosen) if chosen is not None else None
            if lost_to is not None:
                old = f"{lost_to.config.template} version {lost_to.template_version} took {lost_to.best_us:.4g} us"
                return Decision("near", why=[f"{old}, less than what is left: its new version has to be measured"])
            why = [*_explain(group, chosen), *why] if chosen is not None else why + _explain(group, None)
            if chosen is not None:
                others = sum(map(len, groups[at + 1 :]))
                why += [f"{_count(others, 'config')} of records that fit less: not needed"] if others else []
                kind: DecisionKind = "exact" if chosen.relation.kind == "exact" else "compatible"
                return Decision(kind, chosen.known.record, chosen.known.source, why + left)
        near = any(r.kind == "near" and k.record.status == "ok" for k, r in related)
        return Decision("near" if near else "none", why=why + left or ["no record of this operator is known"])

    def failed_configs(
        self,
        workload: Workload,
        device: DeviceFingerprint,
        valid: Valid | None = None,
        toolchain: ToolchainFingerprint | None = None,
    ) -> set[Config]:
        """Configs whose last trial on exactly this task failed, so that a crash is not tried again.

        With `valid`, failures of other template versions do not count.
        """
        exact = [k for k, r in self._related(workload, device, toolchain) if r.kind == "exact"]
        if valid is not None:
            exact = [k for k in exact if valid(k.record.config, k.record.template_version, "")]
        return {s.known.record.config for s in standings(exact, Relation("exact")) if s.failure}

    def measured(
        self, workload: Workload, device: DeviceFingerprint, toolchain: ToolchainFingerprint | None = None
    ) -> list[Record]:
        """Every record of exactly this task, failures included: a tuning run that was interrupted goes on from here."""
        return [k.record for k, r in self._related(workload, device, toolchain) if r.kind == "exact"]

    def seeds(
        self, workload: Workload, n: int, device: DeviceFingerprint | None = None, valid: Valid | None = None
    ) -> list[Config]:
        """Up to `n` configs that were good for the workloads most like this one: the best of each, then the second, ...

        device: prefer its records, and leave out other instruction sets. valid: leave out configs that the task's
        space does not declare.
        """
        groups: dict[tuple[float, str], list[Known]] = defaultdict(list)
        for apart, known in self._neighbours(workload, device):
            if known.record.status == "ok":
                groups[apart, known.workload_id].append(known)
        ranked: list[list[Standing]] = []
        for _, members in sorted(groups.items(), key=lambda item: item[0]):
            good = [s for s in standings(members, Relation("near")) if not s.failure]
            ranked.append(sorted(good, key=lambda s: s.score))
        seeds: dict[Config, None] = {}
        for rank in range(max(map(len, ranked), default=0)):
            for group in ranked:
                if rank >= len(group):
                    continue
                record = group[rank].known.record
                if valid is None or valid(record.config, record.template_version, ""):
                    seeds[record.config] = None
                if len(seeds) >= n:
                    return list(seeds)
        return list(seeds)

    def training(self, workload: Workload, device: DeviceFingerprint | None = None, limit: int = 2000) -> list[Record]:
        """Up to `limit` records for a cost model, those of the most similar workloads first; failures included."""
        return [known.record for _, known in self._neighbours(workload, device)[:limit]]

    def _neighbours(self, workload: Workload, device: DeviceFingerprint | None) -> list[tuple[float, Known]]:
        """Records of the operator (and instruction set), most similar first; another device model counts as 1 apart."""
        self._load()
        found, cache = [], dict[str, float]()
        for known in self._by_op.get(workload.op, []):
            theirs = known.record.device
            if known.record.workload.dtype != workload.dtype:
                continue
            if device is not None and (theirs.kind, theirs.isa) != (device.kind, device.isa):
                continue
            if known.workload_id not in cache:
                cache[known.workload_id] = distance(known.record.workload, workload)
            found.append((cache[known.workload_id] + (device is not None and theirs.model != device.model), known))
        return sorted(found, key=lambda item: item[0])


def _group(
    related: Iterable[tuple[Known, Relation]], valid: Valid, workload: Workload
) -> tuple[list[list[Standing]], list[str]]:
    """Standings of the records that may be used, grouped by workload and relation, the group to ask first in front;
    and a line for each reason why other records are not used.
    """
    groups: dict[tuple[str, Relation], list[Known]] = defaultdict(list)
    left: dict[str, int] = defaultdict(int)
    allowed: dict[tuple[Config, int, str], bool] = {}

    def is_valid(record: Record, space: str) -> bool:
        key = (record.config, record.template_version, space)
        if key not in allowed:
            allowed[key] = valid(*key)
        return allowed[key]

    changed = Relation("compatible", "the search space of the template has changed")
    for known, relation in related:
        record = known.record
        if relation.kind in ("near", "other"):
            use = "seeds the search only" if relation.kind == "near" else "not used"
            left[f"{relation.reason}: {use}"] += 1
        elif not is_valid(record, ""):
            left[f"{record.config.template} version {record.template_version}: not a config of the local template"] += 1
        elif relation.kind == "exact" and not is_valid(record, record.space):
            groups[known.workload_id, changed].append(known)
        else:
            groups[known.workload_id, relation].append(known)
    ranked = _side_by_side([standings(members, relation) for (_, relation), members in groups.items()], workload)
    broken = {s.known.record.config: s.failure for g in ranked for s in g if s.relation.kind == "exact" and s.failure}
    ranked = [[s if s.relation.kind == "exact" else s.after(broken) for s in group] for group in ranked]
    ranked.sort(
        key=lambda g: (
            all(s.relation.kind != "exact" for s in g),
            not any(s.retimed for s in g),
            distance(g[0].workload, workload),
        )
    )
    return ranked, [f"{_count(count, 'record')}: {reason}" for reason, count in left.items()]


def _side_by_side(groups: list[list[Standing]], workload: Workload) -> list[list[Standing]]:
    """The groups, those of exactly this workload as one: a time of an older search space is no reason to take a config
    that is slower. Of a config known from several of them its exact standing counts.
    """
    own = sorted((g for g in groups if g[0].workload == workload), key=lambda g: g[0].relation.kind != "exact")
    together: dict[Config, Standing] = {}
    for standing in (s for group in own for s in group):
        together.setdefault(standing.known.record.config, standing)
    others = [group for group in groups if group[0].workload != workload]
    return [list(together.values()), *others] if together else others


def _outdated_winner(related: Iterable[tuple[Known, Relation]], valid: Valid, chosen: Standing) -> Record | None:
    """The fastest record that beat `chosen` on its task, in its run or later, with an old version of a template."""
    ours, task = chosen.known.record, chosen.workload.id
    faster = [
        known.record
        for known, relation in related
        if relation.kind == chosen.relation.kind
        and known.record.status == "ok"
        and known.record.stage != "search"
        and known.record.best_us < ours.best_us
        and (known.record.time >= ours.time or (known.record.run and known.record.run == ours.run))
        and known.workload_id == task
        and not valid(known.record.config, known.record.template_version, "")
    ]
    return min(faster, key=lambda record: record.best_us, default=None)


def _explain(group: list[Standing], chosen: Standing | None) -> list[str]:
    """One line per config of a group, the choice first, then the best."""
    ordered = sorted(group, key=lambda s: (s is not chosen, bool(s.failure), s.score))
    lines = []
    for standing in ordered[:_WHY_LINES]:
        kind, reason = standing.relation.kind, standing.relation.reason
        if standing is chosen:
            verdict = "taken" if kind == "exact" else f"taken, to be measured once ({reason})"
        elif standing.failure:
            verdict = f"not taken: {standing.failure}"
        else:
            verdict = "not taken: slower" + ("" if standing.retimed else ", or timed in the search only")
        lines.append(f"{kind}, {standing.known.source}: {standing.describe()}: {verdict}")
    if len(ordered) > _WHY_LINES:
        more = _count(len(ordered) - _WHY_LINES, "more config")
        lines.append(f"{ordered[-1].relation.kind}: {more}: not taken: slower or failed")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
