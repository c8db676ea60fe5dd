"""Templates that go wrong in every way a candidate can. Workers import this module by name when a test asks for it."""

from __future__ import annotations

import ctypes
import os
import sys
import time

import numpy as np
import tvm
from sparsetvm.schedules.base import Packed, Template
from tvm.script import tirx as T

from sparsetvm.core.config import Config
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.knobs import Choice
from sparsetvm.space.space import Space

AT_BUILD = ("build_invalid", "build_error", "build_crash", "build_hang")
AT_RUN = ("run_error", "segfault", "abort", "hang", "memory_hog", "flood", "flood_forever", "children", "daemon")
OUTSIDE = ("overrun", "underrun", "overrun_input", "underrun_input", "overrun_weight", "underrun_weight")
IN_KERNEL = ("good", "slow", "wrong", "unwritten", *OUTSIDE, "changes_input", "changes_weight", "gone", "lazy")
COPIES = 2000  # of each kind, so that a search finds enough configs


@tvm.register_global_func("sparsetvm.test.fault", override=True)
def fault(name: str) -> None:
    """Called by the kernel in the middle of its work."""
    if name == "run_error":
        raise RuntimeError("the kernel gave up\nand more")
    if name == "segfault":
        ctypes.string_at(0)
    if name == "abort":
        sys.stderr.write("LLVM ERROR: test abort\n")
        sys.stderr.flush()
        os.abort()
    if name in ("hang", "children", "daemon"):
        if name != "hang" and os.fork() == 0:
            if name == "daemon":  # out of reach of a signal to the worker's process group
                os.setsid()
            time.sleep(600)
        while True:
            pass
    while name == "flood_forever":
        os.write(1, b"x" * 65536)
    if name == "memory_hog":
        hoard = []
        while True:
            hoard.append(np.empty(1 << 28, np.uint8))
    if name == "flood":
        for _ in range(3000):
            os.write(1, b"x" * 1024 + b"\n")
    if name == "slow":
        time.sleep(0.02)


def matmul(n: int, m: int, k: int, kind: str, symbol: str) -> tvm.tirx.PrimFunc:
    """Y[i, j] = sum X[i, r] * W[j * k + r], and the fault."""
    calls = kind in AT_RUN or kind == "slow"
    scale = 1.001 if kind == "wrong" else 1.0
    last = m - 1 if kind == "unwritten" else m
    rows = 0 if kind == "gone" else n

    @T.prim_func(s_tir=True)
    def func(X: T.Buffer((n, k), "float32"), W: T.Buffer((m * k,), "float32"), Y: T.Buffer((n, m), "float32")):
        T.func_attr({"tirx.noalias": True, "global_symbol": symbol})
        if kind == "lazy":
            if T.isnan(Y[n - 1, m - 1]):  # computes only where nothing was computed before
                for i, j in T.grid(n, m):
                    Y[i, j] = T.float32(0)
                    for r in T.serial(k):
                        Y[i, j] = Y[i, j] + X[i, r] * W[j * k + r]
        else:
            for i in T.serial(rows):
                for j in T.serial(last):
                    Y[i, j] = T.float32(0)
                    for r in T.serial(k):
                        Y[i, j] = Y[i, j] + X[i, r] * W[j * k + r] * T.float32(scale)
        if kind == "overrun":
            Y[n - 1, m + 7] = T.float32(1)
        if kind == "underrun":
            Y[0, -2] = T.float32(1)
        if kind == "overrun_input":
            X[n - 1, k] = T.float32(1)
        if kind == "underrun_input":
            X[0, -1] = T.float32(1)
        if kind == "overrun_weight":
            W[m * k + 3] = T.float32(1)
        if kind == "underrun_weight":
            W[-1] = T.float32(1)
        if kind == "changes_input":
            X[0, 0] = X[0, 0] + T.float32(1)
        if kind == "changes_weight":
            W[0] = W[0] + T.float32(1)
        if calls:
            T.evaluate(T.call_packed("sparsetvm.test.fault", kind))

    return func


class Faulty(Template):
    """A plain matmul whose knob says what goes wrong."""

    name = "test.faulty"
    version = 1

    def matches(self, workload: Workload, target: Target) -> bool:
        return workload.op == "matmul"

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Choice("kind", AT_BUILD + AT_RUN + IN_KERNEL), Choice("copy", tuple(range(COPIES)))))

    def default(self, workload: Workload, target: Target) -> Config:
        return Config.of(self.name, kind="good", copy=0)

    def pack(self, weight, bias, workload, config, target) -> Packed:
        if config["kind"] == "build_invalid":
            raise ValueError("this weight does not fit")
        return Packed((np.ascontiguousarray(weight.reshape(-1)),))

    def kernel(self, workload, config, packed, target, symbol):
        kind = config.str("kind")
        if kind == "build_error":
            raise TypeError("no such instruction")
        if kind == "build_crash":
            os.abort()
        if kind == "build_hang":
            time.sleep(600)
        return matmul(workload.n, workload.m, workload.k, kind, symbol)


class Honest(Faulty):
    """The same without faults, as a second template."""

    name = "test.dense"
    dense = True

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Choice("kind", ("good", "slow")), Choice("copy", (0, 1))))


TEMPLATES = {"test.faulty": Faulty(), "test.dense": Honest()}
