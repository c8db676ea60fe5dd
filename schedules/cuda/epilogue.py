"""The epilogue of a workload as macros of epilogue.cuh."""

from __future__ import annotations

import numpy as np

from sparsetvm.core.workload import Epilogue

ACTIVATIONS = ("none", "relu", "clip", "gelu", "gelu_tanh", "sigmoid", "silu", "hard_swish")


def epilogue_defines(epilogue: Epilogue) -> tuple[tuple[str, int | float], ...]:
    """Macros for residual and activation; the bounds only where they matter, so that kernels are shared."""
    defines: list[tuple[str, int | float]] = [
        ("SP_RESIDUAL", int(epilogue.residual)),
        ("SP_ACTIVATION", ACTIVATIONS.index(epilogue.activation)),
    ]
    if epilogue.activation == "clip":
        # Shortest text that reads back as the same float32; infinities have no literal.
        low, high = (float(np.clip(v, -3.4028234e38, 3.4028234e38)) for v in (epilogue.low, epilogue.high))
        defines += [("SP_LOW", low), ("SP_HIGH", high)]
    return tuple(defines)


def bias_array(bias: np.ndarray | None, rows: int) -> np.ndarray:
    """The (rows,) float32 bias, zeros when there is none."""
    return np.zeros(rows, np.float32) if bias is None else bias.astype(np.float32)
