"""Nothing that models do on a GPU overlaps: another thread's call would break the capture of a graph."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sparsetvm.core.manifest import TensorInfo
from sparsetvm.core.target import parse_target
from sparsetvm.runtime import module as module_room
from sparsetvm.runtime.module import Module

X = TensorInfo("x", (2,), "float32")


class Gpu:
    """Stands in for what loads and runs a model, and sees who comes while somebody is there."""

    def __init__(self) -> None:
        self.alone, self.calls, self._inside = True, 0, threading.Lock()

    def _work(self) -> None:
        self.calls += 1
        if self._inside.acquire(blocking=False):
            time.sleep(0.002)
            self._inside.release()
        else:
            self.alone = False

    def load_library(self, path: Path, target: object, function: str) -> tuple[dict[str, object], int]:
        self._work()
        return {function: None}, 1

    def open_run(self, *_: object) -> Gpu:
        self._work()
        return self

    def __call__(self, arrays: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        self._work()
        return tuple(2 * array for array in arrays)

    def load(self, arrays: list[np.ndarray]) -> None:
        self._work()

    def launch(self) -> None:
        self._work()

    def wait(self) -> None:
        self._work()


def test_threads_with_modules_of_their_own_and_a_shared_one_never_meet_on_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, path = Gpu(), tmp_path / "m.so"
    path.touch()
    signature = SimpleNamespace(
        inputs=[X], outputs=[X], threads=1, weights=None, target=parse_target("cuda,sm_90"), dynamic=None
    )
    monkeypatch.setattr(module_room, "read_manifest", lambda path: ({}, signature))
    monkeypatch.setattr(module_room, "_load", gpu.load_library)
    monkeypatch.setattr(module_room, "CudaRun", gpu.open_run)
    shared, x = Module(path), np.ones(2, np.float32)

    def work() -> None:
        with Module(path) as own:
            launch = own.launcher({"x": x})
            for _ in range(3):
                launch()
                own.prepared({"x": x})()
                assert own.run({"x": x})["x"].sum() == shared.run({"x": x})["x"].sum() == 4

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gpu.alone
    assert gpu.calls > 50
