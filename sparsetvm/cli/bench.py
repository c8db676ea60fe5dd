"""`sparsetvm bench`."""

from __future__ import annotations

from typing import Any

import click

from sparsetvm.cli.arrays import read_arrays
from sparsetvm.cli.params import (
    Duration,
    Model,
    fp16_option,
    model_argument,
    shape_option,
    target_option,
    tf32_option,
    to_shapes,
)
from sparsetvm.cli.session import Session, common_options, pass_session
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


@click.command("bench")
@model_argument("path")
@click.option(
    "--against",
    default="ort,dense",
    show_default=True,
    help="Competitors, timed in turn with ours: ort, openvino, openvino-f32, dense; or none.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--seconds", type=Duration(), help="Time to spend on each competitor.")
@click.option(
    "-i", "--inputs", type=click.Path(exists=True, dir_okay=False), help=".npz with inputs.  [default: random]"
)
@click.option("--reference", type=Model(), metavar="MODEL", help="The .onnx that a .so was made from, for competitors.")
@click.option("--per-layer", is_flag=True, help="Also the time of each of our kernels, in the order of their calls.")
@shape_option
@target_option
@tf32_option
@fp16_option
@common_options
@pass_session
def command(
    session: Session,
    *,
    path: str,
    against: str,
    threads: int,
    seconds: float | None,
    inputs: str | None,
    reference: str | None,
    per_layer: bool,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    target: str,
    allow_tf32: bool,
    allow_fp16: bool,
) -> None:
    """Time PATH (a compiled .so, or a model, which is compiled first) beside other runtimes and our dense build."""
    from sparsetvm import api

    competitors = parse_against(against)
    session.say_settings(
        "bench",
        path=path,
        against=competitors,
        threads=threads,
        seconds=seconds,
        inputs=inputs,
        reference=reference,
        per_layer=per_layer or None,
        shape=to_shapes(shapes),
        target=target,
        allow_tf32=allow_tf32 or None,
        allow_fp16=allow_fp16 or None,
    )
    options: dict[str, Any] = {} if seconds is None else {"seconds": seconds}
    report = api.bench(
        path, against=competitors, threads=threads, inputs=None if inputs is None else read_arrays(inputs),
        reference_model=reference, target=target, allow_tf32=allow_tf32, allow_fp16=allow_fp16, per_layer=per_layer,
        shapes=to_shapes(shapes), **options,
    )  # fmt: skip

    def render() -> None:
        from sparsetvm.report.console import print_bench

        print_bench(report)

    session.emit(report, render)
