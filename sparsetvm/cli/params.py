"""Parameter types: durations, shapes, models, and the options that several commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Duration(click.ParamType):  # type: ignore[type-arg]
    """ "90s", "10m", "1h30m", "500ms"; a bare number is seconds. Converts to seconds (float)."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        text = str(value).strip().lower()
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        elif re.fullmatch(r"\d+(?:\.\d+)?", text):
            seconds = float(text)
        else:
            self.fail(f"'{value}' is no duration; write 90s, 10m or 1h30m", param, ctx)
        if seconds <= 0:
            self.fail(f"'{value}' must be longer than nothing", param, ctx)
        return seconds


class Percentiles(click.ParamType):  # type: ignore[type-arg]
    """ "50,95,99.9" -> (50.0, 95.0, 99.9)."""

    name = "percentiles"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' are no percentiles; write 50,95,99.9", param, ctx)
        if not all(0 < part <= 100 for part in found):
            self.fail(f"'{value}': percentiles lie above 0 and up to 100", param, ctx)
        return found


class Shape(click.ParamType):  # type: ignore[type-arg]
    """ "x=1x3x224x224": the static shape of one input. Converts to (name, dims)."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        if isinstance(value, tuple):
            return value[0], value[1]
        name, equals, dims = str(value).rpartition("=")
        if not equals or not name or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", dims):
            self.fail(f"'{value}' is no shape; write NAME=1x3x224x224 with every size at least 1", param, ctx)
        return name, tuple(int(size) for size in dims.split("x"))


class Buckets(click.ParamType):  # type: ignore[type-arg]
    """ "1,8,64" or "seq=16,128": sizes of the dimension that stays open. Converts to what `buckets=` wants."""

    name = "buckets"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        if isinstance(value, (tuple, dict)):
            return value
        from sparsetvm.core.buckets import parse_buckets

        name, sizes = parse_buckets(str(value))
        return sizes if name is None else {name: sizes}


class Model(click.ParamType):  # type: ignore[type-arg]
    """A file that exists, or "example:digits", the model shipped with the package. Converts to a path."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(os.fspath(value))
        if text.startswith("example:"):
            from sparsetvm.errors import did_you_mean
            from sparsetvm.examples import EXAMPLES, example_path

            name = text.removeprefix("example:")
            if name not in EXAMPLES:
                shown = [f"example:{known}" for known in EXAMPLES]
                self.fail(
                    f"no shipped model '{text}'{did_you_mean(text, shown)}; there is {', '.join(shown)}", param, ctx
                )
            return str(example_path(name))
        if not os.path.isfile(text):
            self.fail(f"'{text}' is no file", param, ctx)
        return text

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


def to_shapes(pairs: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]] | None:
    """The value of repeated `--shape` options as `shapes=` wants it."""
    return dict(pairs) or None


def model_argument(name: str = "model") -> Callable[[_Command], _Command]:
    return click.argument(name, type=Model(), metavar=name.upper())


def target_option(command: _Command) -> _Command:
    return click.option(
        "--target",
        default="cpu",
        show_default=True,
        help="cpu or cuda (this machine), cuda:1, or cpu,NAME or cuda,sm_90 to cross-compile.",
    )(command)


def tf32_option(command: _Command) -> _Command:
    return click.option(
        "--allow-tf32", is_flag=True,
        help="GPUs: kernels of dense weights and blocks may use tensor cores that round to TF32 (10 bits of fraction).",
    )(command)  # fmt: skip


def fp16_option(command: _Command) -> _Command:
    return click.option(
        "--allow-fp16", is_flag=True,
        help="GPUs: kernels may multiply in float16 on tensor cores, sums in float32 (float16 models: always).",
    )(command)  # fmt: skip


def threads_option(command: _Command) -> _Command:
    return click.option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="Threads of the compiled code.  [default: cores of this process]",
    )(command)


def shape_option(command: _Command) -> _Command:
    return click.option(
        "--shape", "shapes", type=Shape(), multiple=True, metavar="NAME=DIMS",
        help="Fix the shape of an input, e.g. x=1x3x224x224; may be repeated.",
    )(command)  # fmt: skip


def calibrate_option(command: _Command) -> _Command:
    return click.option(
        "--calibrate", metavar="FILE.npz|random",
        help="Sample inputs: kernels that skip zero activations compete where these leave many.",
    )(command)  # fmt: skip


def to_calibration(text: str | None) -> Any:
    """The value of `--calibrate` as `calibrate=` wants it."""
    from sparsetvm.cli.arrays import read_arrays

    return text if text in (None, "random") else read_arrays(text)


def buckets_option(command: _Command) -> _Command:
    return click.option(
        "--buckets", type=Buckets(), metavar="[DIM=]SIZES",
        help="Keep a symbolic dimension open, with kernels for these sizes: 1,8,64 or seq=16,128.",
    )(command)  # fmt: skip


def record_options(command: _Command) -> _Command:
    """--records, --log-dir, --no-reuse."""
    for option in (
        click.option("--no-reuse", is_flag=True, help="Ignore all earlier records."),
        click.option("--log-dir", type=click.Path(file_okay=False), help="Folder of the tuning log."),
        click.option(
            "--records", type=click.Path(exists=True), multiple=True, metavar="PATH",
            help="More records to read, never written; may be repeated.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command
