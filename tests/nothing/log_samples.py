"""Records for the tests of the tuning log: fixed ones, and hypothesis strategies for arbitrary ones."""

from __future__ import annotations

import string

import msgspec
from hypothesis import strategies as st

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN, Planes, Tiled
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.record import STATUSES, Conditions, Record
from sparsetvm.core.target import DeviceFingerprint, ToolchainFingerprint
from sparsetvm.core.workload import ConvGeometry, Epilogue, Workload

DEVICE = DeviceFingerprint("cpu", "AuthenticAMD", "AMD EPYC 9R14 (family 25 model 17)", "avx512", 2, "0123456789ab")
OTHER_DEVICE = msgspec.structs.replace(DEVICE, vendor="GenuineIntel", model="Xeon 8581C (family 6 model 207)")
AVX2_DEVICE = msgspec.structs.replace(DEVICE, model="EPYC 7763 (family 25 model 1)", isa="avx2")
TOOLCHAIN = ToolchainFingerprint("0.1.0", "0.27.0.post1", "2.0.0", "3.11.2")
PATTERN = PatternSummary("unstructured", (1, 1), 0.1, 1.4, 0, "00112233445566aa")
WORKLOAD = Workload(
    "matmul", 512, 256, 128, Tiled(128, 256, 16), PLAIN, Epilogue(bias=True, activation="relu"), PATTERN
)
CONFIG = Config.of("x86.pattern_code", rows=28, k_block=384, order="rows")
OTHER_CONFIG = CONFIG.replace(k_block=256)


def workload(base: Workload = WORKLOAD, **pattern: object) -> Workload:
    """A workload with some facts of the pattern changed."""
    return msgspec.structs.replace(base, pattern=msgspec.structs.replace(base.pattern, **pattern))


def record(time_us: float | None = 50.0, **changes: object) -> Record:
    """A good record, or a crash when time_us is None."""
    fields: dict[str, object] = {
        "workload": WORKLOAD,
        "config": CONFIG,
        "status": "crash" if time_us is None else "ok",
        "device": DEVICE,
        "toolchain": TOOLCHAIN,
        "template_version": 1,
        "space": "feedfacecafe",
        "times_us": () if time_us is None else (time_us,),
        "time": "2026-01-02T03:04:05Z",
    }
    return Record(**{**fields, **changes})


_size = st.integers(1, 1 << 20)
_name = st.text(string.ascii_letters + "_", min_size=1, max_size=8)
_text = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=30)
_positive = st.floats(1e-3, 1e9)

layouts = st.one_of(
    st.just(PLAIN),
    st.builds(Tiled, _size, _size, st.sampled_from([8, 16])),
    st.builds(
        Planes,
        _size,
        _size,
        _size,
        _size,
        st.integers(0, 9),
        st.sampled_from([8, 16]),
        st.tuples(*[st.integers(1, 3)] * 2),
    ),
)
_kernel = st.tuples(st.integers(1, 7), st.integers(1, 7))
convolutions = st.builds(
    ConvGeometry,
    _size,
    st.integers(7, 999),
    st.integers(7, 999),
    _kernel,
    _kernel,
    st.tuples(*[st.integers(0, 3)] * 4),
    st.just((1, 1)),
    st.integers(1, 99),
)
patterns = st.builds(
    PatternSummary,
    st.sampled_from(["dense", "unstructured", "block", "n:m", "rows", "columns"]),
    st.tuples(st.integers(1, 64), st.integers(1, 64)),
    st.floats(0, 1),
    st.floats(0, 1e3),
    st.just(0),
    st.text(string.hexdigits, max_size=16),
)
epilogues = st.builds(
    Epilogue,
    st.booleans(),
    st.booleans(),
    st.sampled_from(["none", "relu", "clip", "gelu", "silu"]),
    st.floats(-1e6, 1e6),
    st.floats(-1e6, 1e6),
)
workloads = st.builds(
    Workload,
    st.sampled_from(["matmul", "conv2d"]),
    _size,
    _size,
    _size,
    layouts,
    layouts,
    epilogues,
    patterns,
    st.none() | convolutions,
    st.sampled_from(["float32", "float16"]),
    st.integers(1, 128),
)
configs = st.dictionaries(_name, st.integers(-(1 << 31), 1 << 31) | _text, max_size=6).map(
    lambda knobs: Config("x86.some", tuple(sorted(knobs.items())))
)
_devices = st.builds(DeviceFingerprint, st.just("cpu"), _text, _text, st.sampled_from(["avx512", "avx2"]), _size, _text)
_toolchains = st.builds(ToolchainFingerprint, _text, _text, _text, _text)
_conditions = st.builds(
    Conditions, _text, st.none() | _positive, st.none() | _positive, st.none() | st.floats(0, 10), st.none() | _positive
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Any record that may be written."""
    status = draw(st.sampled_from(STATUSES))
    return Record(
        workload=draw(workloads),
        config=draw(configs),
        status=status,
        device=draw(_devices),
        toolchain=draw(_toolchains),
        template_version=draw(st.integers(0, 99)),
        space=draw(_text),
        times_us=tuple(draw(st.lists(_positive, min_size=1, max_size=4))) if status == "ok" else (),
        error=draw(st.none() | st.floats(0, 1e6)),
        message=draw(_text),
        build_seconds=draw(st.floats(0, 1e6)),
        stage=draw(st.sampled_from(["search", "final", "check"])),
        seed=draw(st.integers(0, 1 << 31)),
        run=draw(_text),
        time=draw(_text),
        remeasured=draw(_text),
        conditions=draw(st.none() | _conditions),
        other_us=draw(st.none() | _positive),
    )
