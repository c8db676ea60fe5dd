"""`sparsetvm log best`: which record would be used for a task, and why."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from sparsetvm.cli.params import Model, shape_option, target_option, threads_option, to_shapes
from sparsetvm.cli.session import JSON_SCHEMA, Session, common_options, pass_session
from sparsetvm.errors import UsageError

if TYPE_CHECKING:
    from sparsetvm.core.workload import Workload
    from sparsetvm.log.lookup import Decision, RecordIndex


@click.command("best", short_help="Which record would be used, and why.")
@click.argument("what", metavar="MODEL|ID")
@target_option
@threads_option
@shape_option
@click.option("--records", type=click.Path(exists=True), multiple=True, metavar="PATH", help="More records to read.")
@click.option("--log-dir", type=click.Path(file_okay=False), help="Folder of the tuning log.")
@click.option("--why", is_flag=True, help="Explain each decision.")
@common_options
@pass_session
def best(
    session: Session,
    *,
    what: str,
    target: str,
    threads: int | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    records: tuple[str, ...],
    log_dir: str | None,
    why: bool,
) -> None:
    """Which record `compile` would use on this machine for each task of MODEL.

    ID is the start of a task's id as `sparsetvm log ls` shows it, instead of a model.
    """
    from sparsetvm.core.target import default_threads, device_fingerprint, parse_target
    from sparsetvm.log.location import log_dir as find_log_dir
    from sparsetvm.log.lookup import RecordIndex
    from sparsetvm.search.candidates import candidates_of, validator

    index = RecordIndex.open(find_log_dir(log_dir), records)
    for note in index.skipped():
        session.say(f"note: {note}")
    if what.startswith("example:") or os.path.isfile(what):
        from sparsetvm import api

        model = Model().convert(what, None, None)
        found = api.tasks(model, target=target, threads=threads or default_threads(), shapes=to_shapes(shapes))
        tasks = [(task.name, task.workload) for task in found]
    else:
        tasks = _by_id(index, what)
    rows = []
    for name, workload in tasks:
        where = parse_target(target, workload.threads)
        decision = index.best(workload, device_fingerprint(where), validator(candidates_of(workload, where)))
        rows.append(_row(name, workload, decision))
    document = {"schema": JSON_SCHEMA, "tasks": rows}
    session.emit_json(json.dumps(document, indent=2).encode(), lambda: _print(session, rows, why))


def _by_id(index: RecordIndex, start: str) -> list[tuple[str, Workload]]:
    workloads = {record.workload: record.workload.id for record in index.records()}
    found = [(name, workload) for workload, name in workloads.items() if name.startswith(start)]
    if not found:
        raise UsageError(
            f"'{start}' is no model file and no task of the log",
            hint="sparsetvm log ls shows the ids of all tasks that were measured",
        )
    return found


def _row(name: str, workload: Workload, decision: Decision) -> dict[str, Any]:
    record = decision.record
    return {
        "name": name,
        "workload": workload.describe(),
        "workload_id": workload.id,
        "decision": decision.kind,
        "source": decision.source,
        "config": None if record is None else str(record.config),
        "best_us": None if record is None else record.best_us,
        "why": decision.why,
    }


def _print(session: Session, rows: list[dict[str, Any]], why: bool) -> None:
    for row in rows:
        chosen = "default schedule" if row["config"] is None else f"{row['config']} {row['best_us']:.4g} us"
        source = f" ({row['source']})" if row["source"] else ""
        session.echo(f"{row['name']}  {row['workload']}: {row['decision']}{source}: {chosen}")
        for line in row["why"] if why else []:
            session.echo(f"    {line}")
