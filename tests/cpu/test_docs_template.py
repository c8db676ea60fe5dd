"""The template of docs/schedule-template.md looks like all others and computes what it says."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from test_matmul_templates import EPILOGUES, TARGETS, activate, configs, run, sparse

from sparsetvm.analysis.patterns import summarize
from sparsetvm.core.layout import PLAIN
from sparsetvm.core.workload import Workload

DOCUMENT = Path(__file__).parents[2] / "docs" / "schedule-template.md"


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    (block,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    path = tmp_path_factory.mktemp("template") / "spmv_columns.py"
    path.write_text(block)
    spec = importlib.util.spec_from_file_location("spmv_columns", path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["spmv_columns"] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def test_template_has_the_shape_of_the_others(module):
    assert "Requires" in module.__doc__
    assert set(vars(module.SpmvColumns)) >= {"name", "version", "matches", "space", "default", "pack", "kernel"}
    line = f'"{module.SpmvColumns.name}": ("sparsetvm.schedules.x86.spmv_columns", "SpmvColumns")'
    assert line in DOCUMENT.read_text()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("epilogue", [EPILOGUES[1], EPILOGUES[3]], ids=["bias relu", "residual gelu"])
def test_template_computes_the_product(module, target, epilogue):
    rng = np.random.default_rng(0)
    weight, bias = sparse(rng, (37, 70), 0.2), rng.standard_normal(37).astype(np.float32)
    x = np.maximum(rng.standard_normal((1, 70)), 0).astype(np.float32)  # half of it zero
    residual = rng.standard_normal((1, 37)).astype(np.float32) if epilogue.residual else None
    workload = Workload("matmul", 37, 70, 1, PLAIN, PLAIN, epilogue, summarize(weight))
    template = module.SpmvColumns()
    assert template.matches(workload, target)
    want = x.astype(np.float64) @ weight.T + bias + (0 if residual is None else residual)
    for config in configs(template, workload, target):
        got = run(template, workload, config, target, weight, bias, x, residual)
        np.testing.assert_allclose(got, activate(want, epilogue), rtol=1e-4, atol=1e-5)
