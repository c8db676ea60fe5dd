"""`sparsetvm report`."""

from __future__ import annotations

import click

from sparsetvm.cli.params import Model, shape_option, to_shapes
from sparsetvm.cli.session import Session, common_options, examples, pass_session


@click.command("report", epilog=examples("report", "last -o report.html --model model.onnx", "model.so -o report.html"))
@click.argument("source", metavar="RUN|LOG|MANIFEST")
@click.option("-o", "--output", type=click.Path(dir_okay=False), required=True, help="The .html to write.")
@click.option("--model", type=Model(), metavar="MODEL", help="The .onnx: names of layers and pictures of weights.")
@click.option("--target", help="What MODEL was tuned for.  [default: as the records say]")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Likewise.")
@shape_option
@click.option("--log-dir", type=click.Path(file_okay=False), help="Folder of the tuning log.")
@click.option(
    "--records", type=click.Path(exists=True), multiple=True, metavar="PATH", help="More records; may be repeated."
)
@common_options
@pass_session
def command(
    session: Session,
    *,
    source: str,
    output: str,
    model: str | None,
    target: str | None,
    threads: int | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    log_dir: str | None,
    records: tuple[str, ...],
) -> None:
    """Write a page about a tuning run, a log or a compiled model: found, tried, gained, how to reproduce it.

    RUN is the start of a run's name, or "last" for the newest in the log; LOG a .jsonl file or a folder of them;
    MANIFEST a compiled .so or its .so.json. The page is one file that loads nothing.
    """
    from sparsetvm import api

    report = api.write_report(
        source, output, model=model, target=target, threads=threads, shapes=to_shapes(shapes), log_dir=log_dir,
        records=records,
    )  # fmt: skip

    def render() -> None:
        for note in report.notes:
            session.echo(f"note: {note}")
        session.echo(f"wrote {report.output}: {report.tasks} tasks, {report.records} records, {report.bytes} bytes")

    session.emit(report, render)
