"""Write into tuning_logs/ what a tuning log knows best: per task the fastest sparse and the fastest dense config.

    python scripts/ship_records.py LOG.jsonl... [--keep] [--out tuning_logs]

Only times of final rounds count (searches time a config once), and only configs of the templates as they are now. A
task whose fastest config is of a template that has changed since is left out: what is left of it would be taken for the
best. Of tasks that differ in nothing but the positions of the non-zeros one is enough: records of the others are reused
by the rules of docs/tuning.md. With --keep, what is shipped for the same devices stays where the logs say nothing
better, so that logs of several machines or people can be shipped one after another.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsetvm.schedules.base import template

from sparsetvm.core.record import Record
from sparsetvm.core.target import DeviceFingerprint
from sparsetvm.log.journal import append, journal_path, read_records
from sparsetvm.report.story import target_of
from sparsetvm.search.candidates import candidates_of, validator


def is_final(record: Record) -> bool:
    """True for a good time of a final round."""
    return record.status == "ok" and record.stage == "final"


def is_current(record: Record) -> bool:
    """True when the template still has this version and its space declares the config."""
    target = target_of(record.device, record.workload.threads)
    return validator(candidates_of(record.workload, target))(record.config, record.template_version, "")


def family(record: Record) -> tuple[object, ...]:
    """Equal for tasks whose records stand for each other."""
    w, p = record.workload, record.workload.pattern
    density, uneven = round(p.density, 2), round(p.row_imbalance)
    shape = (w.op, w.m, w.k, w.n, w.layout_in, w.layout_out, w.layout_residual, w.epilogue, w.conv, w.threads, w.cold)
    shape = (*shape, w.active)
    return (*shape, p.kind, p.block, density, uneven)


def selected(records: list[Record]) -> list[Record]:
    """The winner and the best dense config of one task of each family, the latest time of each config."""
    tasks: dict[tuple[object, ...], dict[str, dict[object, Record]]] = {}
    for record in sorted(filter(is_final, records), key=lambda r: r.time):
        of_family = tasks.setdefault(family(record), {})
        of_family.setdefault(record.workload.id, {})[record.config] = record
    chosen = []
    for of_family in tasks.values():
        configs = sorted(next(iter(of_family.values())).values(), key=lambda r: r.best_us)
        if not is_current(configs[0]):
            continue
        configs = list(filter(is_current, configs))
        chosen.append(configs[0])
        chosen += [r for r in configs[1:] if template(r.config.template).dense][:1]
    return chosen


def ship(logs: list[Path], out: Path, keep: bool = False) -> dict[Path, int]:
    """Replace the shipped records of every device in `logs`; returns the number of records per file.

    keep: those that are shipped already compete with the new ones.
    """
    by_device: dict[DeviceFingerprint, list[Record]] = {}
    for path in logs:
        for record in read_records(path).records:
            by_device.setdefault(record.device, []).append(record)
    if keep:
        for path in {journal_path(out, device) for device in by_device}:
            for record in read_records(path).records if path.exists() else []:
                by_device.setdefault(record.device, []).append(record)
    written: dict[Path, int] = {}
    for device, records in by_device.items():
        path = journal_path(out, device)
        if path not in written:
            path.unlink(missing_ok=True)
        chosen = selected(records)
        append(path, *chosen)
        path.with_name(path.name + ".lock").unlink(missing_ok=True)
        written[path] = written.get(path, 0) + len(chosen)
    return written


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG.jsonl")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tuning_logs")
    parser.add_argument("--keep", action="store_true", help="shipped records of these devices compete with the logs'")
    args = parser.parse_args()
    for path, count in ship(args.logs, args.out, args.keep).items():
        print(f"{path}: {count} records, {path.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
