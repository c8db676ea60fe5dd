"""`sparsetvm compile`."""

from __future__ import annotations

import click

from sparsetvm.cli.params import (
    fp16_option,
    model_argument,
    record_options,
    shape_option,
    target_option,
    tf32_option,
    threads_option,
    to_shapes,
)
from sparsetvm.cli.session import Session, common_options, pass_session


@click.command("compile")
@model_argument()
@click.option("-o", "--output", type=click.Path(dir_okay=False), required=True, help="The .so to write.")
@target_option
@tf32_option
@fp16_option
@threads_option
@record_options
@shape_option
@click.option("--require-tuned", is_flag=True, help="Fail (exit code 6) when a layer has no measured record.")
@common_options
@pass_session
def command(
    session: Session,
    *,
    model: str,
    output: str,
    target: str,
    allow_tf32: bool,
    allow_fp16: bool,
    threads: int | None,
    records: tuple[str, ...],
    log_dir: str | None,
    no_reuse: bool,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    require_tuned: bool,
) -> None:
    """Write a deployable .so of MODEL with the best known kernels, and its manifest beside it.

    Nothing is measured: layers without a record get the default schedule. `sparsetvm tune` finds better ones.
    """
    from sparsetvm import api

    session.say_settings(
        "compile", model=model, output=output, target=target, allow_tf32=allow_tf32 or None,
        allow_fp16=allow_fp16 or None, threads=threads,
        records=records, log_dir=log_dir, no_reuse=no_reuse or None, shape=to_shapes(shapes),
        require_tuned=require_tuned or None,
    )  # fmt: skip
    with session.progress() as progress:
        report = api.compile(
            model, output, target=target, allow_tf32=allow_tf32, allow_fp16=allow_fp16, threads=threads,
            records=records, log_dir=log_dir,
            shapes=to_shapes(shapes), reuse=not no_reuse, require_tuned=require_tuned, progress=progress,
        )  # fmt: skip

    def render() -> None:
        from sparsetvm.report.console import print_compile

        print_compile(report)

    session.emit(report, render)
