"""The wheel: built from the sources, installed where the repository is not, it inspects, compiles, runs and reports."""

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import pathlib, sys
import numpy as np
import sparsetvm
from sparsetvm.examples import digits_path
assert pathlib.Path(sparsetvm.__file__).is_relative_to(sys.argv[1]), sparsetvm.__file__
report = sparsetvm.compile(digits_path(), "digits.so", threads=1)
with sparsetvm.load("digits.so") as module:
    assert module(np.zeros((1, 1, 8, 8), "float32")).shape == (1, 10)
print(sparsetvm.write_report("digits.so", "report.html", model=digits_path()).bytes)
"""


def has(package, least):
    try:
        return int(metadata.version(package).split(".")[0]) >= least
    except metadata.PackageNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    not has("setuptools", 77) or not has("build", 1), reason="needs build and setuptools 77: pip install -e '.[test]'"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy without links, which a checkout may have where packages are mapped."""
    copy = tmp_path_factory.mktemp("sources") / "repo"
    for folder in ("sparsetvm", "schedules", "tuning_logs"):
        shutil.copytree(
            ROOT / folder, copy / folder, symlinks=True,
            ignore=lambda at, names: [n for n in names if n == "__pycache__" or (Path(at) / n).is_symlink()],
        )  # fmt: skip
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist")]
    subprocess.run(command, cwd=copy, check=True, stdout=subprocess.DEVNULL)
    (found,) = (copy / "dist").glob("*.whl")
    return copy, found


def test_wheel_holds_every_file_of_the_packages(wheel):
    copy, path = wheel
    inside = set(zipfile.ZipFile(path).namelist())
    places = {"sparsetvm": "sparsetvm", "schedules": "sparsetvm/schedules", "tuning_logs": "sparsetvm/tuning_logs"}
    wanted = {
        f"{place}/{file.relative_to(copy / folder).as_posix()}"
        for folder, place in places.items()
        for file in (copy / folder).rglob("*")
        if file.is_file() and file.suffix != ".md"
    }
    assert wanted - inside == set()
    assert [name for name in inside if name.startswith(("tests", "scripts", "docs"))] == []


def test_wheel_works_where_the_repository_is_not(wheel, tmp_path):
    home = tmp_path / "venv"
    venv.create(home, symlinks=True)
    # The packages that it depends on are those of this environment, at the end of the path: theirs, not ours, count.
    packages = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    others = [path for path in sys.path if path.endswith("-packages")] or site.getsitepackages()
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    python, env = str(home / "bin" / "python"), {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env["SPARSETVM_LOG_DIR"] = str(tmp_path / "logs")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, "--ignore-installed", "--disable-pip-version-check", str(wheel[1])], check=True)

    def run(*command):
        return subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, text=True).stdout

    assert "layers would run sparse" in run(home / "bin" / "sparsetvm", "inspect", "example:digits", "--threads", "1")
    assert int(run(python, "-c", PROGRAM, str(home))) > 10_000
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == 10
