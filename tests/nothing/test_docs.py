"""The documents name everything that exists, and link to nothing that does not."""

import importlib
import re
from pathlib import Path

import click
import msgspec
import pytest

from sparsetvm import errors, settings
from sparsetvm.cli.main import COMMANDS, cli
from sparsetvm.core import results
from sparsetvm.core.record import STATUSES

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def read(name):
    return (ROOT / "docs" / name).read_text()


def commands(command=cli, path=()):
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from commands(command.get_command(click.Context(command), name), (*path, name))
    else:
        yield " ".join(path), command


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_cli_document_names_every_option(name, command):
    text = read("cli.md")
    longest = [max(p.opts, key=len) for p in command.params if isinstance(p, click.Option)]
    assert [option for option in longest if f"`{option}" not in text] == [], name


@pytest.mark.parametrize("name", COMMANDS)
def test_cli_document_names_every_command(name):
    assert f"`sparsetvm {name}" in read("cli.md")


def test_every_command_module_has_the_help_of_the_table():
    for name, (module, text) in COMMANDS.items():
        command = importlib.import_module(f"sparsetvm.cli.{module}").command
        assert command.name == name
        assert command.help
        assert text.endswith(".")


def test_cli_document_names_every_variable():
    text = read("cli.md")
    assert [name for name in settings.VARIABLES if f"`{name}`" not in text] == []
    documented = set(re.findall(r"`(SPARSETVM_\w+)`", text))
    assert documented == set(settings.VARIABLES)
    assert len(settings.VARIABLES) <= 12


def test_cli_document_names_every_exit_code():
    codes = {0} | {
        kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")
    }
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", read("cli.md"), re.M)} == codes


def structs():
    return [
        s
        for s in vars(results).values()
        if isinstance(s, type) and issubclass(s, msgspec.Struct) and s is not results.Event
    ]


@pytest.mark.parametrize("struct", structs())
def test_json_document_names_every_key(struct):
    text = read("json.md")
    assert [key for key in struct.__struct_fields__ if f"`{key}`" not in text] == []


def test_json_document_names_every_status():
    assert [status for status in STATUSES if f"`{status}`" not in read("json.md")] == []


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []
