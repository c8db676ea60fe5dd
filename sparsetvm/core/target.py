"""Targets: what `--target` means, and the fingerprints of device and toolchain that records carry."""

from __future__ import annotations

import functools
import os
import platform
import re
from importlib import metadata
from pathlib import Path

import msgspec

from sparsetvm.core.gpu import known_gpu, query_gpu
from sparsetvm.core.version import VERSION
from sparsetvm.errors import EnvironmentProblem, TargetError, did_you_mean
from sparsetvm.settings import read_settings

# LLVM names of x86 cores that sparsetvm knows, with their vector instruction set and L1d, L2 (bytes) per core.
_AVX512, _AVX2 = "avx512", "avx2"
_KNOWN_CPUS: dict[str, tuple[str, int, int]] = {
    "skylake-avx512": (_AVX512, 32 << 10, 1 << 20),
    "cascadelake": (_AVX512, 32 << 10, 1 << 20),
    "cooperlake": (_AVX512, 32 << 10, 1 << 20),
    "icelake-server": (_AVX512, 48 << 10, 1280 << 10),
    "rocketlake": (_AVX512, 48 << 10, 512 << 10),
    "tigerlake": (_AVX512, 48 << 10, 1280 << 10),
    "sapphirerapids": (_AVX512, 48 << 10, 2 << 20),
    "emeraldrapids": (_AVX512, 48 << 10, 2 << 20),
    "graniterapids": (_AVX512, 48 << 10, 2 << 20),
    "znver4": (_AVX512, 32 << 10, 1 << 20),
    "znver5": (_AVX512, 48 << 10, 1 << 20),
    "haswell": (_AVX2, 32 << 10, 256 << 10),
    "broadwell": (_AVX2, 32 << 10, 256 << 10),
    "skylake": (_AVX2, 32 << 10, 256 << 10),
    "alderlake": (_AVX2, 48 << 10, 1280 << 10),
    "znver1": (_AVX2, 32 << 10, 512 << 10),
    "znver2": (_AVX2, 32 << 10, 512 << 10),
    "znver3": (_AVX2, 32 << 10, 512 << 10),
    "x86-64-v3": (_AVX2, 32 << 10, 256 << 10),
    "x86-64-v4": (_AVX512, 32 << 10, 1 << 20),
}
_CUDA_HOST = "x86-64-v3"
_TF32, _FP16, _BF16 = ",tf32", ",fp16", ",bf16"
_AVX512_FLAGS = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}


class Target(msgspec.Struct, frozen=True):
    """What to compile for.

    kind: "cpu" or "cuda". mcpu: LLVM's name of the core (on "cuda" of the host's). isa: "avx512" or "avx2"; on "cuda"
    the architecture, e.g. "sm_90". threads: worker threads of a kernel. l1, l2: data cache bytes per core (l2 of the
    whole GPU). host: True when this machine can run and measure the result. device: number of the GPU. sms: its
    multiprocessors. shared: bytes of shared memory that one block may have. tf32: True when dense kernels may round the
    factors of products to TF32, fp16, bf16: when any layer's kernel may round them to float16, bfloat16 (GPUs).
    """

    kind: str
    mcpu: str
    isa: str
    threads: int = 1
    l1: int = 32 << 10
    l2: int = 1 << 20
    host: bool = True
    device: int = 0
    sms: int = 0
    shared: int = 0
    tf32: bool = False
    fp16: bool = False
    bf16: bool = False

    @property
    def lanes(self) -> int:
        """float32 lanes of the widest vector register; on a GPU those of one 16-byte access."""
        if self.kind == "cuda":
            return 4
        return 16 if self.isa == _AVX512 else 8

    @property
    def registers(self) -> int:
        """Number of vector registers."""
        return 32 if self.isa == _AVX512 else 16

    def __str__(self) -> str:
        if self.kind == "cuda":
            here = f"cuda:{self.device}" if self.device else "cuda"
            allowed = _TF32 * self.tf32 + _FP16 * self.fp16 + _BF16 * self.bf16
            return (here if self.host else f"cuda,{self.isa}") + allowed
        return f"{self.kind},{self.mcpu}"


def parse_target(text: str, threads: int | None = None, allow_tf32: bool = False, allow_fp16: bool = False) -> Target:
    """Parse `--target`: "cpu" (this host), "cpu,NAME" (cross-compile for an LLVM core name), "cuda" (GPU 0), "cuda:1"
    or "cuda,sm_90" (cross-compile). allow_tf32, allow_fp16, or ",tf32", ",fp16" after a GPU: see Target. bfloat16 is
    allowed by ",bf16" behind these.

    Raises TargetError with the next step for anything else, EnvironmentProblem for a GPU on a machine without one.
    """
    if text.startswith("cuda") and text.endswith(_BF16):
        allowed = parse_target(text.removesuffix(_BF16), threads, allow_tf32, allow_fp16)
        return msgspec.structs.replace(allowed, bf16=True)
    if text.startswith("cuda") and text.endswith(_FP16):
        return parse_target(text.removesuffix(_FP16), threads, allow_tf32, allow_fp16=True)
    if text.startswith("cuda") and text.endswith(_TF32):
        return parse_target(text.removesuffix(_TF32), threads, True, allow_fp16)
    kind, _, arch = text.partition(",")
    threads = default_threads() if threads is None else threads
    if threads < 1:
        raise TargetError(f"--threads {threads}: must be at least 1", hint="leave it out to use all cores")
    if kind == "cuda" or kind.startswith("cuda:"):
        return msgspec.structs.replace(_cuda_target(text, kind, arch), tf32=allow_tf32, fp16=allow_fp16)
    if kind != "cpu":
        raise TargetError(
            f"unknown target '{text}'{did_you_mean(kind, ['cpu', 'cuda'])}",
            hint="use cpu or cuda for this machine; cpu,znver4 (any LLVM core name) or cuda,sm_90 to cross-compile",
        )
    if allow_tf32 or allow_fp16:
        name = "tf32" if allow_tf32 else "fp16"
        raise TargetError(
            f"--allow-{name}: target '{text}' has no {name.upper()} arithmetic",
            hint="leave it out, or use --target cuda",
        )
    if not arch:
        return host_target(threads)
    if arch not in _KNOWN_CPUS:
        raise TargetError(
            f"unknown CPU '{arch}' in target '{text}'{did_you_mean(arch, _KNOWN_CPUS)}",
            hint=f"name one with AVX2 or AVX-512: {', '.join(sorted(_KNOWN_CPUS))}",
        )
    isa, l1, l2 = _KNOWN_CPUS[arch]
    return Target("cpu", arch, isa, threads, l1, l2, host=_runs_here(isa))


def _cuda_target(text: str, kind: str, arch: str) -> Target:
    """A GPU of this machine by number, or an architecture. The host code needs no more than AVX2."""
    number = kind.removeprefix("cuda").removeprefix(":") or "0"
    if not re.fullmatch("[0-9]{1,4}", number) or kind.endswith(":") or (arch and ":" in kind):
        raise TargetError(f"target '{text}': no such GPU", hint="write cuda, cuda:1 or cuda,sm_90")
    if arch:
        model = known_gpu(arch, text)
        return Target("cuda", _CUDA_HOST, arch, 1, model.shared, model.l2, False, 0, model.sms, model.shared)
    try:
        gpu = query_gpu(int(number))
    except EnvironmentProblem as problem:
        raise EnvironmentProblem(
            f"target '{text}' needs a GPU: {problem.message}",
            hint="name the GPU that the result is for, e.g. --target cuda,sm_90 (H100, H200), to cross-compile",
        ) from problem
    model = gpu.model
    return Target("cuda", _CUDA_HOST, gpu.arch, 1, model.shared, model.l2, True, int(number), model.sms, model.shared)


def default_threads() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def host_target(threads: int) -> Target:
    """Target of this machine. SPARSETVM_ISA=avx2 hides AVX-512 (to try what an older CPU would run)."""
    flags = cpu_flags()
    isa = read_settings().isa or (_AVX512 if flags >= _AVX512_FLAGS else _AVX2)
    if not flags >= ({"avx2", "fma"} if isa == _AVX2 else _AVX512_FLAGS):
        raise TargetError(f"this CPU lacks {isa.upper()}", hint="sparsetvm needs an x86 CPU with AVX2 and FMA")
    mcpu = "x86-64-v3" if isa == _AVX2 else _avx512_core(flags)
    return Target("cpu", mcpu, isa, threads, _cache_bytes(1, 32 << 10), _cache_bytes(2, 1 << 20))


def _avx512_core(flags: frozenset[str]) -> str:
    """The LLVM core whose instruction set and scheduling model fit the CPU flags.

    Taken from flags, not from family and model numbers: virtual machines report those wrongly.
    """
    if "amd" in cpu_vendor().lower():
        return "znver5" if "avx512_vp2intersect" in flags else "znver4"
    if "avx512_fp16" in flags:
        return "sapphirerapids"
    return "icelake-server" if "avx512_vbmi2" in flags else "skylake-avx512"


def _runs_here(isa: str) -> bool:
    flags = cpu_flags()
    return flags >= (_AVX512_FLAGS if isa == _AVX512 else {"avx2", "fma"})


@functools.cache
def _cpuinfo() -> dict[str, str]:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def cpu_flags() -> frozenset[str]:
    """Instruction set flags of this machine as Linux names them."""
    return frozenset(_cpuinfo().get("flags", "").split())


def cpu_vendor() -> str:
    """Vendor string of this machine's CPU, e.g. "AuthenticAMD"."""
    return _cpuinfo().get("vendor_id", "unknown")


def _cache_bytes(level: int, otherwise: int) -> int:
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        kind = (index / "type").read_text().strip()
        if kind != "Instruction" and (index / "level").read_text().strip() == str(level):
            size = re.fullmatch(r"(\d+)([KM])", (index / "size").read_text().strip())
            if size:
                return int(size[1]) << (10 if size[2] == "K" else 20)
    return otherwise


class DeviceFingerprint(msgspec.Struct, frozen=True, omit_defaults=True):
    """The measured device. Times are reused as they are only on an equal `model`.

    cores: of a GPU its multiprocessors. driver, clocks: of a GPU, e.g. "580.65.06", "1980/2619 MHz" (highest of
    multiprocessors and memory).
    """

    kind: str
    vendor: str
    model: str
    isa: str
    cores: int
    flags_digest: str
    driver: str = ""
    clocks: str = ""


class ToolchainFingerprint(msgspec.Struct, frozen=True):
    """Versions that shape the generated code."""

    sparsetvm: str
    tvm: str
    numpy: str
    python: str


@functools.cache
def device_fingerprint(target: Target) -> DeviceFingerprint:
    """Fingerprint of this machine's CPU as `target` uses it, or of the GPU that `target` names."""
    import hashlib

    if target.kind == "cuda":
        return _gpu_fingerprint(target)

    info = _cpuinfo()
    flags = " ".join(sorted(cpu_flags()))
    model = info.get("model name", platform.processor() or "unknown")
    return DeviceFingerprint(
        target.kind,
        cpu_vendor(),
        f"{model} (family {info.get('cpu family', '?')} model {info.get('model', '?')})",
        target.isa,
        os.cpu_count() or 1,
        hashlib.sha256(flags.encode()).hexdigest()[:12],
    )


def _gpu_fingerprint(target: Target) -> DeviceFingerprint:
    if not target.host:
        return DeviceFingerprint("cuda", "NVIDIA", f"any {target.isa}", target.isa, target.sms, "")
    gpu = query_gpu(target.device)
    clocks = f"{gpu.clocks[0]}/{gpu.clocks[1]} MHz"
    return DeviceFingerprint("cuda", "NVIDIA", gpu.name, gpu.arch, gpu.model.sms, "", gpu.driver, clocks)


@functools.cache
def toolchain_fingerprint() -> ToolchainFingerprint:
    """Installed versions, read without importing TVM."""
    return ToolchainFingerprint(VERSION, version_of("apache-tvm"), version_of("numpy"), platform.python_version())


def version_of(package: str) -> str:
    """Installed version of a package, "missing" when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"
