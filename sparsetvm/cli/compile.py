"""`sparsetvm compile`."""

from __future__ import annotations

import shlex
from typing import Any, Literal

import click

from sparsetvm.cli.params import (
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


def _print_cc_args(ctx: click.Context, _: click.Parameter, kind: str | None) -> None:
    """Print and end, before a model is asked for."""
    if kind is not None:
        from sparsetvm.build.cc_args import cc_args

        click.echo(shlex.join(cc_args(kind)))
        ctx.exit()


@click.command(
    "compile",
    epilog=examples(
        "compile",
        "model.onnx --threads 1 -o model.so",
        "model.onnx --target cpu,skylake-avx512 --records log.jsonl -o model.so",
    ),
)
@model_argument()
@click.option("-o", "--output", type=click.Path(dir_okay=False), required=True, help="The .so to write.")
@target_option
@tf32_option
@fp16_option
@threads_option
@record_options
@shape_option
@buckets_option
@calibrate_option
@click.option(
    "--print-cc-args", type=click.Choice(["cpu", "cuda"]), is_flag=False, flag_value="cpu", is_eager=True,
    expose_value=False, callback=_print_cc_args, metavar="[cpu|cuda]",
    help="Print what a C++ compiler needs to build a program that runs a .so, and end.",
)  # fmt: skip
@click.option(
    "--weights", type=click.Choice(["embed", "separate"]), default="embed", show_default=True,
    help="Packed weights in the .so, or in a file beside it that processes share.",
)  # fmt: skip
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
    buckets: Any,
    calibrate: str | None,
    require_tuned: bool,
    weights: Literal["embed", "separate"],
) -> None:
    """Write a deployable .so of MODEL with the best known kernels, and its manifest beside it.

    Nothing is measured: layers without a record get the default schedule. `sparsetvm tune` finds better ones.
    """
    from sparsetvm import api

    session.say_settings(
        "compile", model=model, output=output, target=target, allow_tf32=allow_tf32 or None,
        allow_fp16=allow_fp16 or None, threads=threads,
        records=records, log_dir=log_dir, no_reuse=no_reuse or None, shape=to_shapes(shapes), buckets=buckets,
        calibrate=calibrate, require_tuned=require_tuned or None,
    )  # fmt: skip
    with session.progress() as progress:
        report = api.compile(
            model, output, target=target, allow_tf32=allow_tf32, allow_fp16=allow_fp16, threads=threads,
            records=records, log_dir=log_dir, shapes=to_shapes(shapes), buckets=buckets, reuse=not no_reuse,
            require_tuned=require_tuned, weights=weights, calibrate=to_calibration(calibrate), progress=progress,
        )  # fmt: skip

    def render() -> None:
        from sparsetvm.report.console import print_compile

        print_compile(report)

    session.emit(report, render)
