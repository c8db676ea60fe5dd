"""Records for report tests: two tasks, one with failures, in one run."""

from sparsetvm.core.config import Config
from sparsetvm.core.layout import PLAIN
from sparsetvm.core.pattern import PatternSummary
from sparsetvm.core.record import Conditions, Record
from sparsetvm.core.target import device_fingerprint, host_target, toolchain_fingerprint
from sparsetvm.core.workload import Epilogue, Workload

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\u202egnp\x1b[31m"


def workload(m=64, k=128, n=32):
    pattern = PatternSummary(
        kind="unstructured", block=(1, 1), density=0.1, row_imbalance=1.0, empty_rows=0, digest="0" * 16
    )
    return Workload("matmul", m, k, n, PLAIN, PLAIN, Epilogue(), pattern)


def record(at, us, template="x86.pattern_data", *, m=64, stage="search", status="ok", message="", run="abcdef123456"):
    return Record(
        workload=workload(m), config=Config.of(template, nr=1 + at % 4, k_block=64 << at % 3), status=status,
        device=device_fingerprint(host_target(1)), toolchain=toolchain_fingerprint(), template_version=1,
        space="0" * 12, times_us=(us,) if status == "ok" else (), message=message, stage=stage, run=run, seed=7,
        time=f"2026-01-01T00:00:{at:02d}Z", conditions=Conditions(mhz=2600.0, load=0.5, noise=0.01),
    )  # fmt: skip


def records():
    trials = [record(at, 40.0 - at % 7 - at / 10) for at in range(20)]
    trials += [record(20, 90.0, "x86.dense"), record(21, 0.0, status="wrong_answer", message=HOSTILE)]
    trials += [record(at, 30.0, m=65) for at in range(22, 24)]
    return [*trials, record(30, 31.0, stage="final"), record(31, 93.0, "x86.dense", stage="final")]
