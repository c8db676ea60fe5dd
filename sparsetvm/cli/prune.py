"""`sparsetvm prune`."""

from __future__ import annotations

import re
from typing import Any

import click

from sparsetvm.cli.params import model_argument
from sparsetvm.cli.session import Session, common_options, pass_session


class Pattern(click.ParamType):  # type: ignore[type-arg]
    """ "unstructured", "block:4x1" or "n:m:2:4"."""

    name = "pattern"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not re.fullmatch(r"unstructured|block:[1-9]\d*x[1-9]\d*|n:m:\d+:[1-9]\d*", text):
            self.fail(f"'{text}' is no pattern; write unstructured, block:4x1 or n:m:2:4", param, ctx)
        return text


@click.command("prune")
@model_argument()
@click.option(
    "--sparsity",
    type=click.FloatRange(0, 1, max_open=True),
    required=True,
    help="Share of zeros per layer, 0.9 = 90 %.",
)
@click.option(
    "--pattern", type=Pattern(), default="unstructured", show_default=True, help="Also block:RxC and n:m:N:M."
)
@click.option("-o", "--output", type=click.Path(dir_okay=False), required=True, help="The .onnx to write.")
@common_options
@pass_session
def command(session: Session, *, model: str, sparsity: float, pattern: str, output: str) -> None:
    """One-shot magnitude pruning of MODEL, for what-if questions about speed.

    The result is not trained again, so its accuracy is not what a properly pruned model has.
    """
    from sparsetvm import api

    report = api.prune(model, output, sparsity=sparsity, pattern=pattern)

    def render() -> None:
        from sparsetvm.report.console import print_prune

        print_prune(report)

    session.emit(report, render)
