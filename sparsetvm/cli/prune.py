"""`sparsetvm prune`."""

from __future__ import annotations

import click

from sparsetvm.cli.params import model_argument
from sparsetvm.cli.session import Session, common_options, examples, pass_session


@click.command("prune", epilog=examples("prune", "model.onnx --sparsity 0.9 --pattern block:4x1 -o pruned.onnx"))
@model_argument()
@click.option(
    "--sparsity", type=click.FloatRange(0, 1, max_open=True),
    help="Share of zeros per layer, 0.9 = 90 %; an n:m pattern has its own.",
)  # fmt: skip
@click.option(
    "--pattern", default="unstructured", show_default=True,
    help="unstructured, block:4x1, n:m:2:4, n:m:2:4:output, complementary:20, rows (filters), columns or channels; "
    "block:4x1@0.9 has its own sparsity.",
)  # fmt: skip
@click.option("--share", is_flag=True, help="Layers of equal shape keep weights at the same places.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), required=True, help="The .onnx to write.")
@common_options
@pass_session
def command(session: Session, *, model: str, sparsity: float | None, pattern: str, share: bool, output: str) -> None:
    """One-shot magnitude pruning of MODEL, for what-if questions about speed.

    The result is not trained again, so its accuracy is not what a properly pruned model has.
    """
    from sparsetvm import api

    report = api.prune(model, output, sparsity=sparsity, pattern=pattern, share=share)

    def render() -> None:
        from sparsetvm.report.console import print_prune

        print_prune(report)

    session.emit(report, render)
