"""The examples in docstrings, and those in docs/python.md, do what they say."""

import doctest
import importlib
import re
import shutil
from pathlib import Path

import pytest

from sparsetvm.examples import digits_path

ROOT = Path(__file__).parents[2]
MODULES = ["sparsetvm.api", "sparsetvm.report.html.charts", "sparsetvm.core.html_table"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_hold(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSETVM_LOG_DIR", str(tmp_path))
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0


def test_examples_of_the_python_document_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSETVM_LOG_DIR", str(tmp_path / "logs"))
    shutil.copy(digits_path(), "model.onnx")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(), re.M | re.S)
    assert len(blocks) >= 5
    namespace = {}
    for block in blocks:
        exec(compile(block.replace("budget=600", "trials=2"), "docs/python.md", "exec"), namespace)
    pages = [(tmp_path / name).read_text() for name in ("tuned.html", "report.html")]
    assert all("conv2" in page and page.count("data:image/png") == 10 for page in pages)
