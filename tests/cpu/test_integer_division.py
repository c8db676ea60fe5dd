"""Integer division: divisors at which processors trap give a number. In a child process, which a trap would end."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from models import ModelBuilder
from onnx import TensorProto

import sparsetvm
from sparsetvm.core.target import cpu_flags

pytestmark = pytest.mark.skipif("avx2" not in cpu_flags(), reason="needs AVX2")

LEAST = -(2**63)
X, DIVISORS = np.array([7, -9, LEAST, 5]), np.array([[0, 0, 0, 0], [-1, -1, -1, -1], [2, 4, -2, 0]])
RUN = """
import sys, numpy as np, sparsetvm
with sparsetvm.load(sys.argv[1]) as module:
    np.savez(sys.argv[3], **module.run(dict(np.load(sys.argv[2]))))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("division")
    b = ModelBuilder("division", opset=18)
    x, divisors = b.input("x", (4,), TensorProto.INT64), b.input("d", DIVISORS.shape, TensorProto.INT64)
    small = b.op("Cast", divisors, to=TensorProto.UINT32)
    b.op("Div", x, divisors, out="quotient")
    b.op("Mod", x, divisors, out="remainder")
    b.op("Div", b.const(np.array([9, 9, 9, 9], np.uint32)), small, out="unsigned")
    b.op("Div", x, b.const(np.array([0, -1, -1, 3])), out="constant")
    b.output("quotient", "remainder", "unsigned", "constant")
    sparsetvm.compile(b.save(folder / "m.onnx"), folder / "m.so", threads=1, log_dir=folder)
    np.savez(folder / "in.npz", x=X, d=DIVISORS)
    command = [sys.executable, "-c", RUN, *(str(folder / name) for name in ("m.so", "in.npz", "out.npz"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(np.load(folder / "out.npz"))


def test_what_is_divided_by_zero_is_zero(found: dict[str, np.ndarray]) -> None:
    assert not found["quotient"][0].any()
    assert not found["remainder"][0].any()
    assert not found["unsigned"][0].any()
    assert (found["constant"][0], found["quotient"][2, 3]) == (0, 0)


def test_division_by_minus_one_negates(found: dict[str, np.ndarray]) -> None:
    assert found["quotient"][1].tolist() == [-7, 9, LEAST, -5]
    assert not found["remainder"][1].any()
    assert found["constant"].tolist() == [0, 9, LEAST, 1]


def test_other_divisors_divide(found: dict[str, np.ndarray]) -> None:
    """As ONNX has it: quotients are cut, remainders have the sign of the divisor."""
    assert found["quotient"][2].tolist() == [3, -2, 2**62, 0]
    assert found["remainder"][2].tolist() == [1, 3, 0, 0]
    assert found["unsigned"][2, :2].tolist() == [4, 2]
