"""Einsum of two tensors as the matrix product that it is: kernels exist for that one, pruned weights are found in it.

"bhid,bhjd->bhij"       MatMul(q, Transpose(k))
"bij,jkl->bkil"         Transpose(Reshape(MatMul(Reshape(x), Reshape(w))))
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsetvm.frontend.parts import Lowered


@dataclass(frozen=True)
class _Labels:
    """The labels of an equation by their part in the product, in the order of the result (`summed`: of the left)."""

    left: str
    right: str
    out: str
    batch: str
    rows: str
    columns: str
    summed: str


def einsum(parts: Lowered) -> bool:
    """True when the equation is a product of two tensors; others (traces, sums, ellipses) are left to TVM."""
    labels = _parse(str(parts.attrs["equation"]).replace(" ", ""))
    if labels is None or len(parts.inputs) != 2 or not parts.value(0).dtype.startswith("float"):
        return False
    shapes = (parts.value(0).shape, parts.value(1).shape)
    sizes: dict[str, int] = {}
    for text, shape in zip((labels.left, labels.right), shapes, strict=True):
        for label, size in zip(text, shape, strict=True):
            if sizes.setdefault(label, size) != size:
                return False  # an axis of one element that is repeated

    def dimensions(text: str) -> list[int]:
        return [sizes[label] for label in text]

    batch, rows, summed, columns = map(dimensions, (labels.batch, labels.rows, labels.summed, labels.columns))
    matrices = [
        _arranged(parts, str(parts.node.input[0]), labels.left, labels.batch + labels.rows + labels.summed),
        _arranged(parts, str(parts.node.input[1]), labels.right, labels.batch + labels.summed + labels.columns),
    ]
    # Without batch axes the rows may have several: MatMul's leading axes.
    whole = len(summed) == len(columns) == 1 and (len(rows) == 1 or (len(rows) > 1 and not batch))
    if not whole:
        m, k, n = (math.prod(part) for part in (rows, summed, columns))
        for at, shape in enumerate(((*batch, m, k), (*batch, k, n))):
            matrices[at] = parts.op("Reshape", matrices[at], parts.const(list(shape)))
    order = labels.batch + labels.rows + labels.columns
    last = whole and order == labels.out
    product = parts.op("MatMul", *matrices, out=parts.y if last else "")
    if not whole:
        last = order == labels.out
        product = parts.op("Reshape", product, parts.const([*batch, *rows, *columns]), out=parts.y if last else "")
    if not last:
        parts.op("Transpose", product, out=parts.y, perm=[order.index(label) for label in labels.out])
    return True


def _parse(equation: str) -> _Labels | None:
    terms, arrow, out = equation.partition("->")
    operands = terms.split(",")
    if len(operands) != 2 or not all(text.isalpha() or not text for text in (*operands, out)):
        return None
    left, right = operands
    if not arrow:  # labels that stand once, in alphabetical order
        out = "".join(sorted(label for label in {*left, *right} if (left + right).count(label) == 1))
    if any(len(set(text)) < len(text) for text in (left, right, out)) or not set(out) <= {*left, *right}:
        return None
    summed = "".join(label for label in left if label in right and label not in out)
    rows = "".join(label for label in out if label not in right)
    columns = "".join(label for label in out if label not in left)
    batch = "".join(label for label in out if label in left and label in right)
    if len(batch + rows + summed) != len(left) or len(batch + summed + columns) != len(right):
        return None  # a label of one operand alone that is summed
    return _Labels(left, right, out, batch, rows, columns, summed)


def _arranged(parts: Lowered, name: str, labels: str, wanted: str) -> str:
    perm = [labels.index(label) for label in wanted]
    return name if perm == sorted(perm) else parts.op("Transpose", name, perm=perm)
