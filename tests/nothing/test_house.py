"""The shape of the house: who may import whom, how long files are, what no file may contain. Read from the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sparsetvm.schedules.base import template_names

from sparsetvm.settings import VARIABLES

ROOT = Path(__file__).parents[2]
# A module imports from rooms above its own. `examples` and `tuning_logs` hold data.
ROOMS = [
    *("errors", "settings", "examples", "tuning_logs", "core", "frontend", "analysis", "formats", "rewrite", "space"),
    *("schedules", "log", "search", "measure", "build", "runtime", "report", "api", "onnx_backend"),
    "cli",
]
FOLDERS = {"sparsetvm": "sparsetvm", "schedules": "sparsetvm.schedules", "tuning_logs": "sparsetvm.tuning_logs"}
SOURCES = {
    f"{package}.{'.'.join(path.relative_to(ROOT / folder).with_suffix('').parts)}": path
    for folder, package in FOLDERS.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
}
TEMPLATE_METHODS = {"matches", "space", "default", "pack", "kernel"}
EVERY_FILE = sorted(path for folder in (*FOLDERS, "tests", "scripts") for path in (ROOT / folder).rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported with the file) of every import statement; `from a import b` gives a and a.b."""
    whole = tree(path)
    lazy = {
        id(inner)
        for node in ast.walk(whole)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.If))  # If: TYPE_CHECKING
        for inner in ast.walk(node)
    }
    for node in ast.walk(whole):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module), id(node) not in lazy
            yield from ((f"{node.module}.{alias.name}", id(node) not in lazy) for alias in node.names)


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def test_modules_import_from_earlier_rooms_only() -> None:
    wrong = []
    for module, path in SOURCES.items():
        here = room(module)
        if here in ("__init__", "__main__"):  # the package's front: re-exports api, starts the command line
            continue
        assert here in ROOMS, f"{path}: not a room"
        for name, _ in imports(path):
            there = room(name)
            if name.startswith("sparsetvm.") and there != here and ROOMS.index(there) > ROOMS.index(here):
                wrong.append(f"{module} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("first", ["core", "analysis", "log", "space", "search", "cli", "errors", "settings", "report"])
def test_room_needs_no_tvm_to_be_imported(first: str) -> None:
    """Follows imports at module level through the package."""
    seen: set[str] = set()
    waiting = [module for module in SOURCES if room(module) == first]
    while waiting:
        module = waiting.pop()
        if module in seen or module not in SOURCES:
            continue
        seen.add(module)
        names = [name for name, at_once in imports(SOURCES[module]) if at_once]
        assert not [name for name in names if name.split(".")[0] in ("tvm", "tvm_ffi")], module
        waiting += names


def test_files_have_at_most_500_lines() -> None:
    assert [str(path) for path in EVERY_FILE if len(path.read_text().splitlines()) > 500] == []


def test_functions_of_the_product_have_at_most_80_lines() -> None:
    long = [
        f"{path.name}:{node.name}"
        for path in SOURCES.values()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 80
    ]
    assert long == []


def test_variables_are_a_dozen_at_most_and_each_is_documented() -> None:
    used = {name for path in SOURCES.values() for name in re.findall(r"\bSPARSETVM_[A-Z][A-Z_]*", path.read_text())}
    document = (ROOT / "docs" / "cli.md").read_text()
    assert used == set(VARIABLES) | {"SPARSETVM_DOMAIN"}  # the latter is no variable: the graph's operator domain
    assert len(VARIABLES) <= 12
    assert [name for name in VARIABLES if f"`{name}`" not in document] == []


def test_product_has_no_pickle_no_eval_and_no_torch() -> None:
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "torch"}
    found = []
    for module, path in SOURCES.items():
        found += [f"{module}: import {name}" for name, _ in imports(path) if name.split(".")[0] in banned]
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                found.append(f"{module}: {node.func.id}")
            allowed = {keyword.arg for keyword in node.keywords} if isinstance(node, ast.Call) else set()
            if "allow_pickle" in allowed and "allow_pickle=True" in ast.unparse(node):
                found.append(f"{module}: allow_pickle")
    assert found == []


def test_product_swallows_no_exception_silently() -> None:
    silent = [
        f"{module}:{node.lineno}"
        for module, path in SOURCES.items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and all(isinstance(statement, ast.Pass) for statement in node.body)
    ]
    assert silent == []


TEMPLATE_MODULES = {f"sparsetvm.schedules.{name}" for name in template_names()}


def template_files() -> list[Path]:
    return [SOURCES[f"sparsetvm.schedules.{name}"] for name in template_names()]


@pytest.mark.parametrize("path", template_files(), ids=lambda path: path.stem)
def test_template_file_looks_like_all_others(path: Path) -> None:
    module = tree(path)
    assert "Requires" in (ast.get_docstring(module) or "")
    (template,) = [node for node in module.body if isinstance(node, ast.ClassDef) and template_methods(node, module)]
    defined = {node.name for node in template.body if isinstance(node, ast.FunctionDef)}
    assert defined >= template_methods(template, module)
    assigned = {
        ast.unparse(target) for node in template.body if isinstance(node, ast.Assign) for target in node.targets
    }
    assert assigned >= {"name", "version"}


def template_methods(node: ast.ClassDef, module: ast.Module) -> set[str]:
    """What a template has to define itself: all methods but those that its base class has, and always `matches`."""
    bases = {ast.unparse(base) for base in node.bases}
    if "Template" in bases:
        return TEMPLATE_METHODS
    origins = {
        name.name: SOURCES[line.module]
        for line in module.body
        if isinstance(line, ast.ImportFrom)
        and line.module in SOURCES
        and line.module.startswith("sparsetvm.schedules.")
        for name in line.names
    }
    for base in bases & origins.keys():
        inside = tree(origins[base])
        (found,) = [other for other in inside.body if isinstance(other, ast.ClassDef) and other.name == base]
        missing = template_methods(found, inside)
        if missing:
            defined = {method.name for method in found.body if isinstance(method, ast.FunctionDef)}
            return missing - defined | {"matches"}
    return set()
