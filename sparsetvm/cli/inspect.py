"""`sparsetvm inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sparsetvm.cli.params import (
    buckets_option,
    fp16_option,
    model_argument,
    shape_option,
    target_option,
    tf32_option,
    threads_option,
    to_shapes,
)
from sparsetvm.cli.session import Session, common_options, examples, pass_session
from sparsetvm.errors import UsageError


@click.command(
    "inspect",
    epilog=examples(
        "inspect", "model.onnx --threads 1", "model.onnx --what-if unstructured,block:4x1 --sparsity 0.9", "model.so"
    ),
)
@model_argument()
@target_option
@tf32_option
@fp16_option
@threads_option
@shape_option
@buckets_option
@click.option(
    "--what-if",
    "what_if",
    metavar="PATTERN,...",
    help="What pruning to these patterns (of prune --pattern, e.g. block:4x1@0.9) would gain and remove.",
)
@click.option("--sparsity", type=click.FloatRange(0, 1, max_open=True), help="Of patterns of --what-if that say none.")
@click.option(
    "--records", type=click.Path(exists=True), multiple=True, metavar="PATH", help="More records for --what-if to read."
)
@click.option("--log-dir", type=click.Path(file_okay=False), help="Folder of the tuning log, for --what-if.")
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
    buckets: Any,
    what_if: str | None,
    sparsity: float | None,
    records: tuple[str, ...],
    log_dir: str | None,
) -> None:
    """Which layers of MODEL are pruned, how, and what speed-up to expect.

    A layer that would stay dense says why, and a sparse one what bounds it. With --what-if also what patterns would
    gain, before anyone retrains: nothing is measured, and the prediction says which of its figures come from tuning
    records. MODEL may also be a compiled .so: then its manifest says what is in it.
    """
    from sparsetvm import api
    from sparsetvm.core.library import is_library

    if is_library(Path(model)):
        _inspect_library(session, model)
        return
    goals = [text for text in (what_if or "").split(",") if text]
    if sparsity is not None and not goals:
        raise UsageError(
            "--sparsity is for the patterns of --what-if", hint="add --what-if unstructured, or leave it out"
        )
    report = api.inspect(
        model,
        target=target,
        allow_tf32=allow_tf32,
        allow_fp16=allow_fp16,
        threads=threads,
        shapes=to_shapes(shapes),
        buckets=buckets,
        what_if=goals,
        sparsity=sparsity,
        records=records,
        log_dir=log_dir,
    )

    def render() -> None:
        from sparsetvm.report.inspection import print_inspect

        print_inspect(report, session.repeated("target", "threads", "allow_tf32", "allow_fp16", "shapes", "log_dir"))

    session.emit(report, render)


def _inspect_library(session: Session, path: str) -> None:
    from sparsetvm import api

    report = api.inspect_library(path)

    def render() -> None:
        from sparsetvm.report.inspection import print_library

        print_library(report)

    session.emit(report, render)
