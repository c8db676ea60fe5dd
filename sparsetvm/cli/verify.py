"""`sparsetvm verify`."""

from __future__ import annotations

import click

from sparsetvm.cli.params import Model, shape_option, to_shapes
from sparsetvm.cli.session import Session, common_options, examples, pass_session
from sparsetvm.errors import VerificationError


@click.command("verify", epilog=examples("verify", "model.so --reference model.onnx --per-layer"))
@click.argument("module", type=click.Path(exists=True, dir_okay=False), metavar="MODULE.so")
@click.option("--reference", type=Model(), required=True, metavar="MODEL", help="The .onnx it was compiled from.")
@click.option(
    "--samples", type=click.IntRange(min=1), metavar="N", default=3, show_default=True, help="Random inputs to try."
)
@click.option(
    "--tolerance", type=click.FloatRange(min=0, min_open=True),
    help="Largest relative L2 error.  [default: of the manifest; 1e-5 without TF32 and float16]",
)  # fmt: skip
@click.option("--seed", type=int, metavar="N", default=0, show_default=True)
@shape_option
@click.option("--per-layer", is_flag=True, help="Also compare each layer, with a bound from the length of its sums.")
@common_options
@pass_session
def command(
    session: Session,
    *,
    module: str,
    reference: str,
    samples: int,
    tolerance: float | None,
    seed: int,
    per_layer: bool,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
) -> None:
    """Compare the outputs of MODULE.so with ONNX Runtime on the model. Exit code 5 when they differ."""
    from sparsetvm import api

    session.say_settings(
        "verify",
        module=module,
        reference=reference,
        samples=samples,
        tolerance=None if tolerance is None else str(tolerance),
        seed=seed,
        per_layer=per_layer,
        shape=to_shapes(shapes),
    )
    report = api.verify(
        module, reference, samples=samples, tolerance=tolerance, seed=seed, per_layer=per_layer,
        shapes=to_shapes(shapes),
    )  # fmt: skip

    def render() -> None:
        from sparsetvm.report.console import print_verify

        print_verify(report)

    session.emit(report, render)
    if not report.passed:
        session.say_error(
            "outputs differ from the reference\n  next step: see that it is the model the .so was made from; if so,"
            " verify what `sparsetvm compile --no-reuse` gives, and report both results"
        )
        raise click.exceptions.Exit(VerificationError.exit_code)
