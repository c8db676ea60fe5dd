"""`sparsetvm bench`."""

from __future__ import annotations

from typing import Any

import click

from sparsetvm.cli.arrays import read_arrays
from sparsetvm.cli.params import (
    Duration,
    Model,
    Percentiles,
    fp16_option,
    model_argument,
    shape_option,
    target_option,
    tf32_option,
    to_shapes,
)
from sparsetvm.cli.session import Session, common_options, examples, pass_session
from sparsetvm.errors import UsageError, did_you_mean

COMPETITORS = ("ort", "openvino", "openvino-f32", "dense")


def parse_against(text: str) -> tuple[str, ...]:
    """ "ort,dense" -> ("ort", "dense"); "none" times ours alone."""
    names = tuple(name.strip() for name in text.split(",") if name.strip() not in ("", "none"))
    for name in names:
        if name not in COMPETITORS:
            raise UsageError(
                f"--against {name}: unknown competitor{did_you_mean(name, COMPETITORS)}",
                hint=f"known: {', '.join(COMPETITORS)}, none",
            )
    return names


@click.command(
    "bench",
    epilog=examples("bench", "model.so --per-layer", "model.so --instances 4 --warm-up 1s --percentiles 95,99.9"),
)
@model_argument("path")
@click.option(
    "--against", default="ort,dense", show_default=True, metavar="NAME,...",
    help="Competitors, timed in turn with ours: ort, openvino, openvino-f32, dense; or none.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Threads of each instance.  [default: as compiled]"
)
@click.option("--instances", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Copies of each competitor that run at the same time.")  # fmt: skip
@click.option("--seconds", type=Duration(), help="Time to spend on each competitor.  [default: 3s]")
@click.option(
    "--iterations", type=click.IntRange(min=1), metavar="N", help="Runs of each instance, in place of --seconds."
)
@click.option("--warm-up", type=Duration(), help="Runs before, not timed.  [default: 3 runs]")
@click.option("--percentiles", type=Percentiles(), metavar="P,...", help="More than p50, p90 and p99, e.g. 95,99.9.")
@click.option("--export-times", type=click.Path(dir_okay=False), metavar="JSON", help="Write the time of every run.")
@click.option(
    "-i", "--inputs", type=click.Path(exists=True, dir_okay=False), help=".npz with inputs.  [default: random]"
)
@click.option("--reference", type=Model(), metavar="MODEL", help="The .onnx that a .so was made from, for competitors.")
@click.option("--per-layer", is_flag=True, help="Also the time of each of our kernels, in the order of their calls.")
@target_option
@tf32_option
@fp16_option
@shape_option
@common_options
@pass_session
def command(
    session: Session,
    /,
    *,
    path: str,
    against: str,
    inputs: str | None,
    seconds: float | None,
    warm_up: float | None,
    percentiles: tuple[float, ...] | None,
    reference: str | None,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    **options: Any,
) -> None:
    """Time PATH (a compiled .so, or a model, which is compiled first) beside other runtimes and our dense build."""
    from sparsetvm import api

    competitors = parse_against(against)
    if seconds is not None and options["iterations"] is not None:
        raise UsageError("--seconds and --iterations: the one or the other", hint="leave one of them out")
    given = {name: value for name, value in options.items() if value is not False}
    session.say_settings(
        "bench", path=path, against=competitors, seconds=seconds, warm_up=warm_up, percentiles=percentiles,
        inputs=inputs, reference=reference, shape=to_shapes(shapes), **given,
    )  # fmt: skip
    if seconds is not None:
        options["seconds"] = seconds
    with session.progress() as progress:
        report = api.bench(
            path, against=competitors, warm_up=warm_up or 0.0, percentiles=percentiles or (),
            inputs=None if inputs is None else read_arrays(inputs), reference_model=reference,
            shapes=to_shapes(shapes), progress=progress, **options,
        )  # fmt: skip

    def render() -> None:
        from sparsetvm.report.console import print_bench

        print_bench(report)

    session.emit(report, render)
