"""`sparsetvm tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sparsetvm.cli.params import (
    Duration,
    buckets_option,
    calibrate_option,
    fp16_option,
    model_argument,
    record_options,
    shape_option,
    target_option,
    tf32_option,
    threads_option,
    to_calibration,
    to_shapes,
)
from sparsetvm.cli.session import Session, common_options, examples, pass_session
from sparsetvm.errors import Interrupted

if TYPE_CHECKING:
    from sparsetvm.core.results import TuneReport


@click.command(
    "tune", epilog=examples("tune", "model.onnx --threads 1 --budget 10m -o model.so", "model.onnx --tasks list")
)
@model_argument()
@target_option
@tf32_option
@fp16_option
@threads_option
@click.option("--trials", type=click.IntRange(min=0), metavar="N", help="Most measurements in all.")
@click.option("--budget", type=Duration(), help="Most time in all: 90s, 10m, 1h.")
@click.option(
    "--early-stopping", type=click.IntRange(min=1), metavar="N", help="Leave a task after N trials without gain."
)
@click.option(
    "--effort", type=click.Choice(["quick", "default", "max"]), default="default", show_default=True,
    help="How long to search when neither --trials nor --budget says.",
)  # fmt: skip
@click.option(
    "--tasks", default="all", show_default=True, metavar="all|list|NAME,3-5",
    help="Tasks to tune, by name or number; list only lists them.",
)  # fmt: skip
@record_options
@click.option("--dry-run", is_flag=True, help="Show what would be tuned and what would be reused.")
@click.option("--seed", type=int, metavar="N", default=0, show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Processes that build candidates.")
@click.option("--tracker", metavar="HOST:PORT", help="Measure on a fleet: the address of its tracker.")
@click.option("--key", metavar="NAME", help="Which workers of the fleet.")
@shape_option
@buckets_option
@calibrate_option
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Also compile to this .so.")
@click.option("--report", type=click.Path(dir_okay=False), help="Also write an HTML report to this file.")
@common_options
@pass_session
def command(
    session: Session,
    *,
    model: str,
    target: str,
    allow_tf32: bool,
    allow_fp16: bool,
    threads: int | None,
    trials: int | None,
    budget: float | None,
    early_stopping: int | None,
    effort: str,
    tasks: str,
    records: tuple[str, ...],
    log_dir: str | None,
    no_reuse: bool,
    dry_run: bool,
    seed: int,
    jobs: int | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    buckets: Any,
    calibrate: str | None,
    tracker: str | None,
    key: str | None,
    output: str | None,
    report: str | None,
) -> None:
    """Search fast kernels for the layers of MODEL on this device.

    Every measurement is appended to the tuning log. Run the same command again to go on: what is known is reused.
    """
    from sparsetvm import api

    only_list = tasks == "list"
    session.say_settings(
        "tune", model=model, target=target, allow_tf32=allow_tf32 or None,
        allow_fp16=allow_fp16 or None, threads=threads, trials=trials,
        budget=budget, early_stopping=early_stopping, effort=effort, tasks=tasks, records=records, log_dir=log_dir,
        no_reuse=no_reuse or None, dry_run=dry_run or None, seed=seed, jobs=jobs, shape=to_shapes(shapes),
        buckets=buckets, calibrate=calibrate, tracker=tracker, key=key, output=output, report=report,
    )  # fmt: skip
    with session.progress() as progress:
        result = api.tune(
            model, target=target, allow_tf32=allow_tf32, allow_fp16=allow_fp16, threads=threads,
            trials=trials, budget=budget,
            early_stopping=early_stopping, effort=effort, tasks="all" if only_list else tasks, records=records,
            log_dir=log_dir, reuse=not no_reuse, dry_run=dry_run or only_list, seed=seed, jobs=jobs,
            shapes=to_shapes(shapes), calibrate=to_calibration(calibrate), buckets=buckets, tracker=tracker, key=key,
            output=None if only_list else output, page=None if only_list else report, progress=progress,
        )  # fmt: skip
    _finish(session, result, only_list, dry_run)


def _finish(session: Session, report: TuneReport, only_list: bool, dry_run: bool) -> None:
    def render() -> None:
        from sparsetvm.report.console import print_tasks, print_tune

        options = session.repeated("target", "threads", "allow_tf32", "allow_fp16", "shapes", "records", "log_dir")
        print_tasks(report) if only_list else print_tune(report, options, dry=dry_run)

    session.emit(report, render)
    if report.interrupted:
        session.say_error("interrupted; everything measured is in the log\n  next step: run the same command to go on")
        raise click.exceptions.Exit(Interrupted.exit_code)
