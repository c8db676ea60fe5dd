"""Every field of the fingerprints, one by one: what differs in a hard one is never applied."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_samples import CONFIG, DEVICE, OTHER_CONFIG, TOOLCHAIN, WORKLOAD, convolutions, epilogues, layouts, record

from sparsetvm.core.config import Config
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.record import Record
from sparsetvm.core.target import DeviceFingerprint, ToolchainFingerprint
from sparsetvm.core.workload import ACTIVATION_DENSITIES, Workload
from sparsetvm.log.lookup import Decision, RecordIndex

SPACE = "feedfacecafe"
_text = st.text("abcxyz0123456789. -", max_size=12)
_size = st.integers(1, 1 << 20)
_version = st.from_regex(r"[0-9]{1,2}\.[0-9]{1,2}\.[0-9]{1,2}(\.post[0-9])?", fullmatch=True) | _text

DEVICE_FIELDS: dict[str, tuple[st.SearchStrategy[Any], str]] = {
    "kind": (st.sampled_from(["cuda", "rocm"]), "hard"),
    "model": (_text, "hard"),
    "isa": (st.sampled_from(["avx2", "sm_90"]), "hard"),
    # The model says all that these say, or how the machine was booted.
    "vendor": (_text, "soft"),
    "cores": (_size, "soft"),
    "flags_digest": (_text, "soft"),
    # Of GPUs; a driver does not compile the kernels, and clocks are the highest that the model allows.
    "driver": (_text, "soft"),
    "clocks": (_text, "soft"),
}
TOOLCHAIN_FIELDS: dict[str, tuple[st.SearchStrategy[Any], str]] = {
    "sparsetvm": (_version, "version"),
    "tvm": (_version, "version"),
    # They do not shape the generated code.
    "numpy": (_version, "soft"),
    "python": (_version, "soft"),
}
WORKLOAD_FIELDS: dict[str, tuple[st.SearchStrategy[Any], str]] = {
    "op": (st.just("conv2d"), "hard"),
    "m": (_size, "hard"),
    "k": (_size, "hard"),
    "n": (_size, "hard"),
    "layout_in": (layouts, "hard"),
    "layout_out": (layouts, "hard"),
    "epilogue": (epilogues, "hard"),
    "conv": (convolutions, "hard"),
    "dtype": (st.sampled_from(["float16", "bfloat16", "int8"]), "hard"),
    "threads": (_size, "hard"),
    "cold": (st.just(True), "hard"),
    "layout_residual": (layouts, "hard"),
    "tf32": (st.just(True), "hard"),
    "fp16": (st.just(True), "hard"),
    "bf16": (st.just(True), "hard"),
    "activation_density": (st.sampled_from(ACTIVATION_DENSITIES), "hard"),
    "pattern": (st.nothing(), "its own fields"),
}
PATTERN_FIELDS: dict[str, tuple[st.SearchStrategy[Any], str]] = {
    "kind": (st.sampled_from(["dense", "block", "n:m", "rows", "columns"]), "hard"),
    "block": (st.tuples(st.integers(2, 9), st.integers(2, 9)), "hard"),
    "density": (st.floats(0, 1), "pattern"),
    "row_imbalance": (st.floats(0, 100), "pattern"),
    "empty_rows": (st.integers(1, 500), "compatible"),
    "digest": (_text, "compatible"),
}


@pytest.mark.parametrize(
    ("struct", "fields"),
    [
        (DeviceFingerprint, DEVICE_FIELDS),
        (ToolchainFingerprint, TOOLCHAIN_FIELDS),
        (Workload, WORKLOAD_FIELDS),
        (PatternSummary, PATTERN_FIELDS),
    ],
)
def test_every_field_has_a_rule(struct: type, fields: dict[str, Any]) -> None:
    """A new field must be added here, and with it the decision whether it is hard."""
    assert set(struct.__struct_fields__) == set(fields)


def declares(config: Config, version: int, space: str) -> bool:
    return config in (CONFIG, OTHER_CONFIG) and version == 1 and space in ("", SPACE)


def best(known: Record) -> Decision:
    index = RecordIndex()
    index.add(known)
    return index.best(WORKLOAD, DEVICE, declares, toolchain=TOOLCHAIN)


def changed(base: Any, field: str, value: Any) -> Any:
    return msgspec.structs.replace(base, **{field: value})


def minor(version: str) -> str:
    found = re.match(r"[0-9]+\.[0-9]+", version)
    return found[0] if found else version


def check_rule(rule: str, decision: Decision, theirs: Any, ours: Any) -> None:
    if theirs == ours or rule == "soft":
        assert decision.kind == "exact"
    elif rule == "compatible":
        assert decision.kind == "compatible"
    elif rule == "version":
        assert decision.kind == ("compatible" if minor(theirs) == minor(ours) else "near")
    elif rule == "pattern":
        assert decision.kind in ("compatible", "near")
    else:
        assert decision.kind in ("near", "none")
    assert (decision.record is not None) == (decision.kind in ("exact", "compatible"))
    assert decision.why


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_one_changed_field_decides_as_its_rule_says(data: st.DataObject) -> None:
    tables = {"device": DEVICE_FIELDS, "toolchain": TOOLCHAIN_FIELDS, "workload": WORKLOAD_FIELDS, "": PATTERN_FIELDS}
    part = data.draw(st.sampled_from(list(tables)))
    field = data.draw(st.sampled_from([name for name in tables[part] if name != "pattern"]))
    values, rule = tables[part][field]
    value = data.draw(values)
    bases = {"device": DEVICE, "toolchain": TOOLCHAIN, "workload": WORKLOAD, "": WORKLOAD.pattern}
    other = changed(bases[part], field, value)
    known = record(workload=changed(WORKLOAD, "pattern", other)) if not part else record(**{part: other})
    check_rule(rule, best(known), value, getattr(bases[part], field))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_number_of_other_fields_makes_up_for_a_hard_mismatch(data: st.DataObject) -> None:
    """Any fields may differ, whether they matter or not; as soon as a hard one does, nothing is applied."""
    hard = False
    made: dict[str, Any] = {}
    pattern = WORKLOAD.pattern
    for field in data.draw(st.sets(st.sampled_from(list(PATTERN_FIELDS)), max_size=2)):
        pattern = changed(pattern, field, data.draw(PATTERN_FIELDS[field][0]))
        hard |= PATTERN_FIELDS[field][1] == "hard" and pattern != WORKLOAD.pattern
    workload = changed(WORKLOAD, "pattern", pattern)
    for name, base, table in (
        ("device", DEVICE, DEVICE_FIELDS),
        ("toolchain", TOOLCHAIN, TOOLCHAIN_FIELDS),
        ("workload", workload, WORKLOAD_FIELDS),
    ):
        made[name] = base
        fields = [field for field in table if field != "pattern"]
        for field in data.draw(st.sets(st.sampled_from(fields), max_size=2)):
            value = data.draw(table[field][0])
            hard |= table[field][1] == "hard" and value != getattr(base, field)
            if table[field][1] == "version":
                hard |= minor(value) != minor(getattr(base, field))
            made[name] = changed(made[name], field, value)
    decision = best(record(**made))
    if hard:
        assert decision.record is None
        assert decision.kind in ("near", "none")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"template_version": 2}, "none"),
        ({"config": CONFIG.replace(rows=29)}, "none"),
        ({"config": Config("x86.other", CONFIG.knobs)}, "none"),
        ({"space": "another"}, "compatible"),
    ],
)
def test_template_version_config_and_space_are_checked_too(changes: dict[str, Any], kind: str) -> None:
    decision = best(record(**changes))
    assert decision.kind == kind
    assert (decision.record is None) == (kind == "none")
