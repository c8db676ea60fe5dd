"""`sparsetvm inspect`."""

from __future__ import annotations

import click

from sparsetvm.cli.params import (
    fp16_option,
    model_argument,
    shape_option,
    target_option,
    tf32_option,
    threads_option,
    to_shapes,
)
from sparsetvm.cli.session import Session, common_options, pass_session


@click.command("inspect")
@model_argument()
@target_option
@tf32_option
@fp16_option
@threads_option
@shape_option
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
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
) -> None:
    """Which layers of MODEL are pruned, how, and what speed-up to expect.

    A layer that would stay dense says why.
    """
    from sparsetvm import api

    report = api.inspect(
        model, target=target, allow_tf32=allow_tf32, allow_fp16=allow_fp16, threads=threads, shapes=to_shapes(shapes)
    )

    def render() -> None:
        from sparsetvm.report.console import print_inspect

        print_inspect(report)

    session.emit(report, render)
