"""The documents name everything that exists, and link to nothing that does not."""

import contextlib
import importlib
import re
import shlex
from pathlib import Path

import click
import msgspec
import pytest
from doc_commands import DOCS, ROOT, help_examples, script_commands, sparsetvm_commands

from sparsetvm import errors, settings
from sparsetvm.cli.main import COMMANDS, cli
from sparsetvm.core import results
from sparsetvm.core.record import STATUSES


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


@pytest.mark.parametrize(("document", "line"), sorted({*sparsetvm_commands(), *help_examples()}))
def test_commands_of_the_documents_are_understood(document, line, tmp_path, monkeypatch):
    """Parsed, not run: commands, options and values that do not exist would be refused here."""
    monkeypatch.chdir(tmp_path)
    words = [{"N": "1", "PATH": "p.json"}.get(word, word) for word in shlex.split(line.split(" #")[0])]
    for word in words:
        if re.fullmatch(r"[\w.-]+\.(onnx|so|npz|jsonl|json|toml)|MODEL|A|B", word):
            Path(word).write_text("{}" if word.endswith("json") else "")
    command, ctx = cli, click.Context(cli, info_name="sparsetvm")
    while isinstance(command, click.Group):
        while words[0].startswith("-"):  # options of every command, with their value
            words = words[2:] if words[0] in ("--config", "--json") else words[1:]
        name = words.pop(0)
        command = command.get_command(ctx, name)
        assert command is not None, name
        ctx = click.Context(command, parent=ctx, info_name=name)
    # A sentence may leave arguments out, and an option may print something and end.
    with contextlib.suppress(click.MissingParameter, click.exceptions.Exit):
        command.make_context(command.name, words, parent=ctx.parent)


def test_scripts_of_the_documents_have_the_options_that_they_are_shown_with():
    """Read from the source: running them for --help would import half of the world."""
    shown = list(script_commands())
    assert len(shown) >= 10
    sources = {path.name: path.read_text() for path in (ROOT / "scripts").glob("*.py")}
    libraries = "".join(path.read_text() for path in (ROOT / "scripts").glob("*/*.py"))
    missing = [
        (document, script, option)
        for document, script, options in shown
        for option in options
        if f'"{option}"' not in sources[script] + libraries
    ]
    assert missing == []
