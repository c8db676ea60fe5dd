"""How many activations of a layer's input are not zero, where the graph itself says so or somebody has measured it.

A k-winners node leaves k of n values, whatever its input; reshapes and transposes keep that. A ReLU or a clamp at zero
leaves as many as the data has it: runtime/calibrate.py runs the model to count them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.layout import Plain, Planes
from sparsetvm.core.target import Target
from sparsetvm.core.workload import FEW_TOKENS, Workload, activation_level

_SAME_VALUES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose")
_SAME_VALUES_OWN = ("convert", "alias")


def uses_density(workload: Workload, target: Target) -> bool:
    """Whether a schedule of the workload can skip zeros of X: products of few tokens and convolutions of blocks of
    rows on AVX-512, sparse products of few tokens on GPUs.
    """
    few = workload.op == "matmul" and workload.n <= FEW_TOKENS and isinstance(workload.layout_in, Plain)
    if target.kind == "cuda":
        return few and workload.pattern.kind != "dense"
    if target.isa != "avx512" or workload.conv is None:
        return few and target.isa == "avx512"
    strip = workload.pattern.block[0] if workload.pattern.kind == "block" else 1
    planes = isinstance(workload.layout_in, Planes) and isinstance(workload.layout_out, Planes)
    return planes and strip % 8 == 0 and workload.conv.stride == (1, 1) and workload.conv.groups == 1


def with_density(workload: Workload, target: Target, density: float | None) -> Workload:
    """The workload with its level of activation density, where that is known and of use."""
    if density is None or not uses_density(workload, target):
        return workload
    return msgspec.structs.replace(workload, activation_density=activation_level(density))


def exact_density(graph: Graph, name: str, producers: Mapping[str, Node]) -> float | None:
    """Largest share of non-zeros that the value `name` can have, None when the graph sets no limit."""
    node = producers.get(name)
    while node is not None and (node.is_op(*_SAME_VALUES) or node.is_op(*_SAME_VALUES_OWN, domain=SPARSETVM_DOMAIN)):
        node = producers.get(node.inputs[0])
    if node is None or not node.is_op("k_winners", domain=SPARSETVM_DOMAIN):
        return None
    return int(node.attrs["k"]) / math.prod(graph.values[node.outputs[0]].shape[int(node.attrs.get("axis", -1)) :])
