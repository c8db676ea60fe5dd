"""Buckets on a GPU: a static function for each, and what puts runs of other sizes together (without a GPU here)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import bert, mlp

import sparsetvm
from sparsetvm.core.buckets import Dynamic, MaskInput
from sparsetvm.core.manifest import TensorInfo, read_manifest
from sparsetvm.runtime.cuda_buckets import CudaBuckets


def test_library_has_both_functions_of_every_bucket(tmp_path: Path) -> None:
    import tvm

    from sparsetvm.core.cuda_runtime import load_cuda_runtime

    model = mlp(batch="N").save(tmp_path / "m.onnx")
    library = tmp_path / "m.so"
    sparsetvm.compile(model, library, target="cuda,sm_90", log_dir=tmp_path, buckets=(1, 32))
    load_cuda_runtime(to_run=False)
    machine = tvm.runtime.load_module(str(library))["vm_load_executable"]()
    for name in ("main_1", "main_static_1", "main_32", "main_static_32"):
        assert machine["get_function_arity"](name) == (2 if "static" in name else 1)


def test_masks_of_a_sequence_are_arguments_that_the_manifest_names(tmp_path: Path) -> None:
    model = bert(batch=1, seq="S").save(tmp_path / "m.onnx")
    sparsetvm.compile(model, tmp_path / "m.so", target="cuda,sm_90", log_dir=tmp_path, buckets=(16, 32))
    found = read_manifest(tmp_path / "m.so")
    assert found is not None
    assert found[1].dynamic is not None
    assert found[1].dynamic.masks == (MaskInput("lowest", 4, 3),)


class _FakeRun:
    """One bucket of a network that doubles its input and adds the mask."""

    def __init__(self, calls: list[str], function: str, outputs: Sequence[TensorInfo]) -> None:
        self.calls, self.function, self.outputs = calls, function, outputs
        self.arrays: Sequence[Any] = ()

    def __call__(self, arrays: Sequence[Any]) -> tuple[np.ndarray, ...]:
        self.calls.append(self.function)
        x = arrays[0]
        assert x.shape == self.outputs[0].shape
        return (2 * x + (arrays[1] if len(arrays) > 1 else 0),)

    def load(self, arrays: Sequence[Any]) -> None:
        self.arrays = arrays

    def launch(self) -> None:
        self(self.arrays)

    def wait(self) -> None:
        pass


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_are_joined_along_the_axis(axis: int) -> None:
    calls: list[str] = []
    shape = (4, 3) if axis == 0 else (3, 4)
    info = TensorInfo("x", shape, "float32", axis)
    dynamic = Dynamic("n", (1, 4), True, (1.0, 2.0))
    runs = CudaBuckets(lambda name, _, outputs: _FakeRun(calls, name, outputs), [info], [info], dynamic)  # type: ignore[arg-type,return-value]
    x = np.arange(21, dtype=np.float32).reshape((7, 3) if axis == 0 else (3, 7))
    (y,) = runs([x])
    np.testing.assert_array_equal(y, 2 * x)
    assert calls == ["main_static_4", "main_static_4"]
    calls.clear()
    runs([x[:4] if axis == 0 else x[:, :4]])
    assert calls == ["main_static_4"]


def test_padded_run_gets_its_masks() -> None:
    info = TensorInfo("x", (1, 4), "float32", 1)
    dynamic = Dynamic("n", (1, 4), False, (1.0, 2.0), (MaskInput("keep", 2, 1),))
    runs = CudaBuckets(lambda name, _, outputs: _FakeRun([], name, outputs), [info], [info], dynamic)  # type: ignore[arg-type,return-value]
    (y,) = runs([np.zeros((1, 3), np.float32)])
    np.testing.assert_array_equal(y, [[1, 1, 1]])
