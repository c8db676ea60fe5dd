"""The TVM target of a sparsetvm target. Candidates and the final module are compiled for the same one."""

from __future__ import annotations

from sparsetvm.measure.compile import tvm_target

__all__ = ["tvm_target"]
