"""The commands that the documents show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from sparsetvm.cli.main import cli

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(?:sh)?\n(.*?)^```", re.M | re.S)


def _blocks_and_prose(text: str) -> tuple[str, str]:
    """What stands in fenced blocks, continued lines joined, and the rest with single spaces."""
    blocks = "\n".join(_FENCE.findall(text)).replace("\\\n", " ")
    return blocks, re.sub(r"\s+", " ", re.sub(r"```.*?```", "", text, flags=re.S))


def sparsetvm_commands() -> Iterator[tuple[str, str]]:
    """(document, words after `sparsetvm`) of lines in fenced blocks, and of those in backticks with an argument."""
    for path in DOCS:
        blocks, prose = _blocks_and_prose(path.read_text())
        lines = re.findall(r"^sparsetvm (.+)$", blocks, re.M) + re.findall(r"`sparsetvm ((?:\w+ )+[^`]+)`", prose)
        yield from ((path.name, line) for line in lines if not re.search(r"\||\.\.\.|COMMAND", line))


def help_examples() -> Iterator[tuple[str, str]]:
    """The same of the examples at the end of `--help`."""
    group = click.Context(cli)
    for name in cli.list_commands(group):
        command = cli.get_command(group, name)
        epilog = command.epilog if command is not None else None
        yield from (("--help", line) for line in re.findall(r"^  sparsetvm (.+)$", epilog or "", re.M))


def script_commands() -> Iterator[tuple[str, str, list[str]]]:
    """(document, script, options) of every `python scripts/...` in the documents."""
    for path in DOCS:
        for part in _blocks_and_prose(path.read_text()):
            for script, rest in re.findall(r"python scripts/(\w+\.py)([^\n`&#]*)", part):
                yield path.name, script, re.findall(r"(?<= )--[\w-]+", rest)
