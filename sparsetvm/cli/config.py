"""`--config FILE.toml` and `--save-config`: options from a file, one table per command.

    [tune]
    threads = 1
    budget = "10m"
    shape = ["x=1x3x224x224"]

An option on the command line wins. Keys are the long names of options without the dashes in front.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from typing import Any

import click
from click.core import ParameterSource

from sparsetvm.errors import UsageError, did_you_mean

# What a file may not set: it says how to read files, or where this one call writes.
_NOT_SAVED = ("config", "save-config", "help", "json", "quiet", "verbose", "print-cc-args")
_GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)


def read_config(path: str) -> dict[str, Any]:
    """The tables of a file. Raises UsageError when it cannot be read as TOML."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # type: ignore[import-not-found,no-redef,unused-ignore]
    try:
        with open(path, "rb") as file:
            return dict(tomllib.load(file))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}", hint="name a TOML file that can be read") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {path}: no TOML: {error}", hint="docs/cli.md shows one") from error


def apply_config(ctx: click.Context, path: str, tables: Mapping[str, Any]) -> None:
    """Make the values of the command's table its defaults. Raises UsageError for unknown tables and keys."""
    root = ctx.find_root().command
    commands = root.list_commands(ctx) if isinstance(root, click.Group) else []
    for name in tables:
        if name not in commands:
            raise UsageError(f"--config {path}: [{name}] is no command{did_you_mean(name, commands)}")
    if isinstance(ctx.command, click.Group):
        return
    table: Any = tables
    for word in _words(ctx):
        table = table.get(word, {}) if isinstance(table, Mapping) else {}
    known = {name: option for option in ctx.command.params if (name := _name(option)) and name not in _NOT_SAVED}
    where = ".".join(_words(ctx))
    if not isinstance(table, Mapping):
        raise UsageError(f"--config {path}: '{where}' is no table", hint=f"write [{where}]")
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise UsageError(
                f"--config {path}: [{where}] has no option '{key}'{did_you_mean(key, known)}",
                hint=f"`sparsetvm {' '.join(_words(ctx))} --help` lists them",
            )
        option = known[key]
        repeated = isinstance(option, click.Option) and option.multiple
        if isinstance(value, (dict, list)) and not (repeated and isinstance(value, list)):
            raise UsageError(f"--config {path}: [{where}] {key}: expected one value, given {type(value).__name__}")
        defaults[str(option.name)] = [value] if repeated and not isinstance(value, list) else value
    ctx.default_map = defaults


def save_config(ctx: click.Context, path: str) -> None:
    """Write what was given to this command, on the command line or by --config, as its table; others stay."""
    tables = read_config(path) if os.path.exists(path) else {}
    given = {
        name: _plain(ctx.params[str(option.name)])
        for option in ctx.command.params
        if (name := _name(option))
        and name not in _NOT_SAVED
        and option.name in ctx.params
        and ctx.get_parameter_source(str(option.name)) in _GIVEN
    }
    at = tables
    for word in _words(ctx)[:-1]:
        at = at.setdefault(word, {})
    at[_words(ctx)[-1]] = given
    text = "\n".join(_lines("", tables)).strip() + "\n"
    try:
        from sparsetvm.core.files import write_whole

        write_whole(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise UsageError(f"--save-config {path}: {error.strerror}", hint="name a file in a writable folder") from error


def given_options(ctx: click.Context, names: Collection[str]) -> list[str]:
    """The words of those options of this call that are among the parameters `names` and were given."""
    words: list[str] = []
    for option in ctx.command.params:
        if option.name not in names or ctx.get_parameter_source(str(option.name)) not in _GIVEN:
            continue
        value = _plain(ctx.params[option.name])
        flag = f"--{_name(option)}"
        if isinstance(option, click.Option) and option.is_flag:
            words += [flag] * bool(value)
        else:
            values = value if isinstance(value, list) else [value]
            words += [word for each in values for word in (flag, str(each))]
    return words


def _words(ctx: click.Context) -> list[str]:
    """The command's name below `sparsetvm`: ["log", "ls"]."""
    words: list[str] = []
    at: click.Context | None = ctx
    while at is not None and at.parent is not None:
        words.insert(0, str(at.command.name))
        at = at.parent
    return words


def _name(option: click.Parameter) -> str:
    """The long name of an option without dashes, "" of an argument."""
    return max(option.opts, key=len).lstrip("-") if isinstance(option, click.Option) else ""


def _plain(value: Any) -> Any:
    """A converted value as the file may hold it: shapes as text again."""
    if isinstance(value, tuple):
        shape = len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], tuple)
        return f"{value[0]}={'x'.join(map(str, value[1]))}" if shape else [_plain(item) for item in value]
    return value


def _lines(name: str, table: Mapping[str, Any]) -> list[str]:
    """TOML of nested tables; JSON's strings, numbers, booleans and lists are TOML's too."""
    values = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    lines = ["", f"[{name}]"] if name and (values or not table) else []
    lines += [f"{json.dumps(key)} = {json.dumps(value)}" if not _bare(key) else f"{key} = {json.dumps(value)}"
              for key, value in values.items()]  # fmt: skip
    for key, value in table.items():
        if isinstance(value, Mapping):
            part = key if _bare(key) else json.dumps(key)
            lines += _lines(f"{name}.{part}" if name else part, value)
    return lines


def _bare(key: str) -> bool:
    return key.isascii() and key.replace("-", "").replace("_", "").isalnum()
