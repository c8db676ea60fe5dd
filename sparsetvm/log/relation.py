"""How a record relates to a task: the rules of reuse.

exact       same workload (pattern positions included), device model, toolchain, template version and space: use it.
compatible  same workload but for the numbers of the pattern (density within 10 %, imbalance within a factor of 2), or
            another patch version, or a space that changed but still declares the config: use it, after measuring it
            once.
near        another shape or pattern of the same operator, another device of the same instruction set, another version:
            seeds the search and trains the cost model, is never applied.
other       another operator, data type or instruction set: of no use.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from sparsetvm.core.record import Record
from sparsetvm.core.target import DeviceFingerprint, ToolchainFingerprint
from sparsetvm.core.workload import Workload

Kind = Literal["exact", "compatible", "near", "other"]
DENSITY_TOLERANCE = 0.10
# Small layers of one network differ this much by chance, and the config is measured again before it is used.
IMBALANCE_FACTOR = 2.0


@dataclass(frozen=True)
class Relation:
    """The kind, and in words why it is no better than that ("" for exact)."""

    kind: Kind
    reason: str = ""


def relate(
    record: Record, workload: Workload, device: DeviceFingerprint, toolchain: ToolchainFingerprint, same_id: bool
) -> Relation:
    """Relation of a record to a task, its config left aside. same_id: the two workloads have equal ids."""
    theirs = record.workload
    if theirs.op != workload.op or theirs.dtype != workload.dtype:
        return Relation("other", f"another operator ({theirs.op} {theirs.dtype})")
    if (record.device.kind, record.device.isa) != (device.kind, device.isa):
        return Relation("other", f"another instruction set ({record.device.kind} {record.device.isa})")
    if record.device.model != device.model:
        return Relation("near", f"measured on another device ({record.device.model})")
    versions = _versions(record.toolchain, toolchain)
    if versions.kind == "near":
        return versions
    if same_id:
        return versions
    if theirs.family != workload.family:
        return Relation("near", f"another task ({theirs.describe()}, {theirs.pattern.describe()})")
    return _patterns(theirs, workload)


def _versions(theirs: ToolchainFingerprint, ours: ToolchainFingerprint) -> Relation:
    """Python and numpy do not shape the generated code; sparsetvm and TVM do."""
    pairs = (("sparsetvm", theirs.sparsetvm, ours.sparsetvm), ("TVM", theirs.tvm, ours.tvm))
    for name, then, now in pairs:
        if _minor(then) != _minor(now):
            return Relation("near", f"measured with {name} {then}, this is {now}")
    for name, then, now in pairs:
        if then != now:
            return Relation("compatible", f"measured with patch version {name} {then}, this is {now}")
    return Relation("exact")


def _minor(version: str) -> str:
    found = re.match(r"\d+\.\d+", version)
    return found[0] if found else version


def _patterns(theirs: Workload, ours: Workload) -> Relation:
    density = (theirs.pattern.density, ours.pattern.density)
    if not _close(*density, DENSITY_TOLERANCE):
        return Relation("near", f"density {density[0]:.4g} is not within 10 % of {density[1]:.4g}")
    imbalance = (theirs.pattern.row_imbalance, ours.pattern.row_imbalance)
    if max(imbalance) > IMBALANCE_FACTOR * min(imbalance):
        return Relation("near", f"row imbalance {imbalance[0]:.3g} is not within a factor of 2 of {imbalance[1]:.3g}")
    return Relation("compatible", f"other positions, density {density[0]:.4g} against {density[1]:.4g}")


def patterns_alike(theirs: Workload, ours: Workload) -> bool:
    """True when a config of one pattern may serve the other: near-equal density and row imbalance."""
    return _patterns(theirs, ours).kind == "compatible"


def _close(theirs: float, ours: float, tolerance: float) -> bool:
    return abs(theirs - ours) <= tolerance * ours


def distance(theirs: Workload, ours: Workload) -> float:
    """How unlike two workloads of one operator are: 0 for the same, about 1 for a doubled dimension."""
    sizes = sum(abs(math.log2(a / b)) for a, b in ((theirs.m, ours.m), (theirs.k, ours.k), (theirs.n, ours.n)))
    density = abs(math.log2(max(theirs.pattern.density, 1e-6) / max(ours.pattern.density, 1e-6)))
    imbalance = abs(theirs.pattern.row_imbalance - ours.pattern.row_imbalance)
    apart = sizes + 2 * density + min(imbalance, 4.0) / 4
    apart += 2.0 * ((theirs.pattern.kind, theirs.pattern.block) != (ours.pattern.kind, ours.pattern.block))
    apart += 1.0 * (type(theirs.layout_in) is not type(ours.layout_in))
    apart += 0.5 * (theirs.threads != ours.threads) + 0.25 * (theirs.epilogue != ours.epilogue)
    apart += abs(math.log2(theirs.active / ours.active))
    if theirs.conv is not None and ours.conv is not None:
        mine, other = ours.conv, theirs.conv
        apart += 1.0 * (mine.kernel != other.kernel) + 0.5 * (mine.stride != other.stride)
        apart += 0.5 * (mine.groups != other.groups)
    return apart
