"""Why a sparse layer is not faster: what its kernel spends most of its time on, by the model of roofline.py."""

from __future__ import annotations

from sparsetvm.analysis.roofline import sparse_parts
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload

# What bounds a kernel -> what that means, and what would help.
LIMITS = {
    "arithmetic": "one multiply-add per weight that is left; only more zeros help",
    "loads": "inputs are loaded for every weight; tall blocks share loads (--what-if block:4x1)",
    "partial sums": "rows are summed in pieces that fit the L1 cache; more zeros help little",
    "code": "kernels stream their own code once per call; a larger batch shares it (--shape)",
    "weights": "the weights left are read once per call; a larger batch shares them (--shape)",
    "call": "so small that the call takes longest; a larger batch (--shape) or larger layers help",
    "activations": "inputs and outputs are moved, zeros or not; fewer channels help (--what-if rows)",
}


def limit_of(workload: Workload, target: Target) -> str:
    """The key of LIMITS for a layer that runs sparse."""
    parts = sparse_parts(workload, target)
    return max(parts, key=parts.__getitem__)
