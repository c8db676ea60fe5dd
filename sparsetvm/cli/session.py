"""What all commands share: -q, -v and --json, results on stdout, progress on stderr."""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sparsetvm.errors import UsageError, printable

if TYPE_CHECKING:
    from sparsetvm.core.results import Result
    from sparsetvm.report.progress import ProgressContext

_Command = TypeVar("_Command", bound=Callable[..., Any])
JSON_SCHEMA = 1


@dataclass
class Session:
    """Settings of this call. json_path: where `--json` goes, "-" is stdout (the tables are then left out).

    config, tables: the file of `--config` and what is in it.
    """

    quiet: bool = False
    verbose: bool = False
    json_path: str | None = None
    config: str | None = None
    tables: dict[str, Any] | None = None

    def echo(self, text: str = "") -> None:
        """A line of the result, on stdout."""
        if self.json_path != "-":
            click.echo(printable(text))

    def say(self, text: str) -> None:
        """A line of progress, on stderr; `-q` drops it."""
        if not self.quiet:
            click.echo(printable(text), err=True)

    def say_settings(self, command: str, **settings: Any) -> None:
        """Echo what a long command is about to do; settings that are None or empty were left to the defaults."""
        given = {key: value for key, value in settings.items() if value not in (None, (), {}, "")}
        self.say(f"{command}: " + ", ".join(f"{key.replace('_', '-')}={_show(value)}" for key, value in given.items()))

    def say_error(self, text: str) -> None:
        prefix = "error:"
        if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
            prefix = click.style(prefix, fg="red", bold=True)
        click.echo(f"sparsetvm: {prefix} {printable(text)}", err=True)

    def emit(self, result: Result, render: Callable[[], None] | None = None) -> None:
        """Print the table, and the JSON where `--json` says."""
        self.emit_json(result.to_json(), render)

    def emit_json(self, document: bytes, render: Callable[[], None] | None = None) -> None:
        """Like `emit`, for a result that is JSON already."""
        if render is not None and self.json_path != "-":
            render()
        if self.json_path == "-":
            click.echo(document)
        elif self.json_path is not None:
            from sparsetvm.core.files import write_whole

            try:
                write_whole(self.json_path, lambda file: file.write(document + b"\n"))
            except OSError as error:
                raise UsageError(
                    f"--json {self.json_path}: {error.strerror}", hint="name a file in a writable folder, or -"
                ) from error

    def emit_error(self, kind: str, message: str, hint: str | None, layer: str | None, code: int) -> None:
        """The error as JSON, where `--json` says; a failure to write it is not worth a second error."""
        error = {"kind": kind, "message": message, "hint": hint, "layer": layer, "exit_code": code}
        try:
            self.emit_json(json.dumps({"schema": JSON_SCHEMA, "error": error}, indent=2).encode())
        except UsageError:
            self.json_path = None

    @staticmethod
    def repeated(*names: str) -> str:
        """The options of these parameters as they were given, for a command to type next (" --threads 1")."""
        from sparsetvm.cli.config import given_options

        return "".join(f" {shlex.quote(word)}" for word in given_options(click.get_current_context(), names))

    def progress(self) -> ProgressContext:
        """Where a long call sends its events."""
        from sparsetvm.report.progress import make_progress

        return make_progress(quiet=self.quiet, verbose=self.verbose)


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={'x'.join(map(str, shape))}" for name, shape in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    from sparsetvm.examples import shown_model

    return f"{value:g}s" if isinstance(value, float) else shown_model(str(value))


def _set(field: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> Any:
        if value:
            setattr(ctx.ensure_object(Session), field, value)
        return value

    return callback


def _configure(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    """Read the file once, wherever --config stands, and apply it to each command on the way."""
    session = ctx.ensure_object(Session)
    if value is not None or session.tables is not None:
        from sparsetvm.cli.config import apply_config, read_config

        if value is not None:
            session.config, session.tables = value, read_config(value)
        apply_config(ctx, str(session.config), session.tables or {})


def _saving(command: _Command) -> _Command:
    """Write the options down before the command runs, where --save-config says."""

    @functools.wraps(command)
    def run(*args: Any, **values: Any) -> Any:
        ctx = click.get_current_context()
        path = ctx.params.pop("save_config", None)
        values.pop("save_config", None)
        if path is not None:
            from sparsetvm.cli.config import save_config

            save_config(ctx, path)
        return command(*args, **values)

    return run  # type: ignore[return-value]


def examples(command: str, *lines: str) -> str:
    """The last part of a command's help; \\b keeps click from filling the lines."""
    return "\b\nExamples:\n" + "\n".join(f"  sparsetvm {command} {line}" for line in lines)


def common_options(command: _Command) -> _Command:
    """Add -q, -v, --json and --config, which may stand before or after the command's name, and --save-config."""
    command = _saving(command)
    options = (
        click.option("-q", "--quiet", is_flag=True, expose_value=False, callback=_set("quiet"), help="No progress."),
        click.option(
            "-v",
            "--verbose",
            is_flag=True,
            expose_value=False,
            callback=_set("verbose"),
            help="Every event; tracebacks.",
        ),
        click.option(
            "--json",
            metavar="PATH|-",
            expose_value=False,
            is_eager=True,
            callback=_set("json_path"),
            help="Write the result as JSON (docs/json.md); - is stdout, without tables.",
        ),
        click.option(
            "--config",
            metavar="TOML",
            expose_value=False,
            is_eager=True,
            callback=_configure,
            help="Options from a file, a table per command.",
        ),
        click.option("--save-config", metavar="TOML", help="Write the options given here into a file for --config."),
    )
    for option in reversed(options):
        command = option(command)
    return command


pass_session = click.make_pass_decorator(Session, ensure=True)
