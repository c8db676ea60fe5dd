"""`sparsetvm log`: ls, best, check, compact, merge, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from sparsetvm.cli.log_best import best
from sparsetvm.cli.session import JSON_SCHEMA, Session, common_options, pass_session
from sparsetvm.errors import LogError

if TYPE_CHECKING:
    from sparsetvm.log.lookup import RecordIndex
    from sparsetvm.log.maintenance import CheckReport, LogRow

_PATHS = click.argument("paths", nargs=-1, type=click.Path(), metavar="[PATH]...")
_LOG_DIR = click.option("--log-dir", type=click.Path(file_okay=False), help="Folder of the tuning log.")
_SHIPPED = click.option("--shipped", is_flag=True, help="Also the records that came with the package.")


@click.group("log")
def command() -> None:
    """List, explain, check, compact, merge and export tuning records.

    PATH is a .jsonl file or a folder with such files; without one it is the log folder that `tune` writes to.
    """


command.add_command(best)


def _open(paths: tuple[str, ...], log_dir: str | None, shipped: bool) -> RecordIndex:
    """The records of `paths`, or of the log folder when there are none."""
    from sparsetvm.log.location import log_dir as find_log_dir
    from sparsetvm.log.lookup import RecordIndex

    folder = None if paths else find_log_dir(log_dir)
    return RecordIndex.open(folder, paths, shipped=shipped)


def _say_skipped(session: Session, index: RecordIndex) -> int:
    skipped = sum(map(len, index.bad.values()))
    for path, lines in index.bad.items():
        if lines:
            session.say(f"note: {path}: {len(lines)} damaged lines were skipped; `sparsetvm log check` names them")
    return skipped


def _as_json(**document: Any) -> bytes:
    return json.dumps({"schema": JSON_SCHEMA, **document}, indent=2).encode()


@command.command("ls", short_help="Tasks, their best times and configs.")
@_PATHS
@_LOG_DIR
@_SHIPPED
@common_options
@pass_session
def ls(session: Session, *, paths: tuple[str, ...], log_dir: str | None, shipped: bool) -> None:
    """One line per task and device: trials, the best time and its config."""
    from sparsetvm.log.maintenance import list_records

    index = _open(paths, log_dir, shipped)
    rows = list_records(index.records())
    skipped = _say_skipped(session, index)

    def render() -> None:
        from sparsetvm.report.console import print_log

        print_log(rows)

    session.emit_json(_as_json(rows=[_row(row) for row in rows], skipped=skipped), render)


def _row(row: LogRow) -> dict[str, Any]:
    return {
        "workload_id": row.workload_id,
        "workload": row.workload.describe(),
        "pattern": row.workload.pattern.describe(),
        "sparsity": row.workload.pattern.sparsity,
        "threads": row.workload.threads,
        "device": row.device,
        "config": row.config,
        "best_us": row.best_us,
        "stage": row.stage,
        "trials": row.count,
        "failed": row.failed,
        "newest": row.newest,
    }


@command.command("check", short_help="Name the lines that cannot be used.")
@_PATHS
@_LOG_DIR
@click.option("--repair", is_flag=True, help="Rewrite files without their bad lines; the old file stays as .bak.")
@common_options
@pass_session
def check(session: Session, *, paths: tuple[str, ...], log_dir: str | None, repair: bool) -> None:
    """Read every line and name those that cannot be used. Exit code 7 when there are any."""
    from sparsetvm.log.location import log_dir as find_log_dir
    from sparsetvm.log.maintenance import check as check_log

    reports = [report for path in _logs(paths, find_log_dir(log_dir)) for report in check_log(path, repair)]
    files = [
        {
            "path": str(report.path),
            "records": report.records,
            "duplicates": report.duplicates,
            "statuses": report.statuses,
            "bad": [{"line": line, "reason": reason} for line, reason in report.bad],
            "backup": None if report.backup is None else str(report.backup),
        }
        for report in reports
    ]
    session.emit_json(_as_json(files=files), lambda: _print_check(session, reports))
    bad = sum(len(report.bad) for report in reports)
    if bad and not repair:
        # Said, not raised: with --json the report above is the one document.
        session.say_error(
            f"{bad} line{'s' if bad > 1 else ''} cannot be used; the others still are\n"
            "  next step: sparsetvm log check --repair takes them out and keeps a copy"
        )
        raise click.exceptions.Exit(LogError.exit_code)


def _logs(paths: tuple[str, ...], folder: Path) -> list[Path]:
    """What the user named, or the log folder once there is one."""
    return [Path(path) for path in paths] or [found for found in [folder] if found.exists()]


def _print_check(session: Session, reports: list[CheckReport]) -> None:
    if not reports:
        session.echo("no tuning log yet")
    for report in reports:
        statuses = ", ".join(f"{count} {status}" for status, count in report.statuses.items())
        duplicates = f", {report.duplicates} duplicates" if report.duplicates else ""
        session.echo(f"{report.path}: {report.records} records ({statuses or 'none'}){duplicates}")
        for line, reason in report.bad:
            session.echo(f"  line {line}: {reason}")
        if report.backup is not None:
            session.echo(f"  repaired; the old file is {report.backup}")


@command.command("compact", short_help="Drop what no decision depends on.")
@_PATHS
@_LOG_DIR
@common_options
@pass_session
def compact(session: Session, *, paths: tuple[str, ...], log_dir: str | None) -> None:
    """Rewrite logs without damaged and repeated lines and without search timings that later ones of the same config
    replaced; no decision changes. Files of writers that could not lock are folded in. The old files stay as .bak.
    """
    from sparsetvm.log.compact import compact as compact_log
    from sparsetvm.log.location import log_dir as find_log_dir

    reports = [report for path in _logs(paths, find_log_dir(log_dir)) for report in compact_log(path)]
    files = [
        {
            "path": str(report.path),
            "before": report.before,
            "after": report.after,
            "bad": report.bad,
            "backups": [str(backup) for backup in report.backups],
        }
        for report in reports
    ]

    def render() -> None:
        if not reports:
            session.echo("no tuning log yet")
        for report in reports:
            kept = f"; the old file is {report.backups[0]}" if report.backups else ""
            session.echo(f"{report.path}: {report.before} records, {report.after} left{kept}")

    session.emit_json(_as_json(files=files), render)


@command.command("merge", short_help="Merge logs into one.")
@click.argument("paths", nargs=-1, required=True, type=click.Path(), metavar="PATH...")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The .jsonl to write or extend.")
@common_options
@pass_session
def merge(session: Session, *, paths: tuple[str, ...], output: str) -> None:
    """Merge logs into one, each record once; merging again changes nothing."""
    from sparsetvm.log.maintenance import merge as merge_logs

    report = merge_logs(paths, output)
    for path, count in report.skipped.items():
        session.say(f"note: {path}: {count} damaged lines were skipped; `sparsetvm log check` names them")
    session.emit_json(
        _as_json(output=output, records=report.records, skipped=sum(report.skipped.values())),
        lambda: session.echo(f"{output} holds {report.records} records"),
    )


@command.command("export", short_help="Write records as CSV or in the T4 format.")
@_PATHS
@_LOG_DIR
@_SHIPPED
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "t4"]),
    default="csv",
    show_default=True,
    help="csv: a table. t4: the JSON results format that autotuning frameworks share.",
)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="The file to write.")
@common_options
@pass_session
def export(
    session: Session,
    *,
    paths: tuple[str, ...],
    log_dir: str | None,
    shipped: bool,
    form: Literal["csv", "t4"],
    output: str,
) -> None:
    """Write records for other programs."""
    from sparsetvm.log.export import export as export_records

    index = _open(paths, log_dir, shipped)
    records = index.records()
    skipped = _say_skipped(session, index)
    export_records(records, output, form)
    session.emit_json(
        _as_json(output=output, format=form, records=len(records), skipped=skipped),
        lambda: session.echo(f"wrote {len(records)} records to {output}"),
    )
