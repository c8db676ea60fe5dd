"""Which products multiply in float16 whatever a search decides, so that what lies between them may be float16 as well.

Before:  x (float32) -> matmul, blocks of 32 x 32 -> h (Tiled, float32) -> matmul, 2:4 -> y
After:   x -> convert (HalfTiled) -> matmul -> h (HalfTiled, float16) -> matmul -> y (Tiled, float32)

A product rounds X to float16 before it multiplies. Where all that read a value do, it is rounded when it is stored
instead of when it is read: the same numbers, half the traffic. Residuals, and what anything else reads, stay float32.
"""

from __future__ import annotations

from sparsetvm.analysis.patterns import summarize
from sparsetvm.core.graph import SPARSETVM_DOMAIN, Graph, Node
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.target import Target
from sparsetvm.rewrite.tokens import few_tokens, token_lanes, tokens_of

_HALF_LANES = 8  # float16 numbers of 16 bytes: what kernels copy at once
_FEWEST_ROWS = 8  # of a block: what the kernels on tensor cores take
_TWO_FOUR = ((2, 4), (1, 4))


def half_layers(graph: Graph, target: Target) -> dict[str, bool]:
    """Names of the products that multiply in float16 -> whether their kernel needs X in float16.

    Empty without the permission (a float16 model, or `target.fp16`), and on CPUs. Patterns that only kernels in float32
    exploit are left out: those kernels read and write float32.
    """
    if target.kind != "cuda" or not (target.fp16 or graph.float16):
        return {}
    found: dict[str, bool] = {}
    for node in graph.nodes:
        if not node.is_op("matmul", domain=SPARSETVM_DOMAIN):
            continue
        rows = tokens_of(graph, node)
        if rows <= few_tokens(target) or token_lanes(rows, target) % _HALF_LANES:
            continue
        pattern = summarize(node.attrs["weight"])
        sparse_cores = target.isa == "sm_90" and (pattern.kind, pattern.block) in [("n:m", pair) for pair in _TWO_FOUR]
        if sparse_cores or _on_tensor_cores(pattern):
            found[node.name] = sparse_cores
    return found


def stays_half(graph: Graph, node: Node, readers: list[Node], half: dict[str, bool]) -> bool:
    """True when what a product of `half` computes may be stored in float16: all that read it round it anyway."""
    name = node.outputs[0]
    if len(node.inputs) > 1 or name in graph.outputs or not readers:
        return False  # a residual has the type of the result
    return all(reader.name in half and name not in reader.inputs[1:] for reader in readers)


def _on_tensor_cores(pattern: PatternSummary) -> bool:
    """True for patterns whose rows share their columns, all of them or blocks of them."""
    return pattern.kind in ("dense", "rows", "columns") or (
        pattern.kind == "block" and pattern.block[0] >= _FEWEST_ROWS
    )
