"""What a time depends on beside the kernel: clock, governor and load of the machine, as Linux and NVML tell them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sparsetvm.core.nvml import current_clocks
from sparsetvm.core.record import Conditions

_CPUS = Path("/sys/devices/system/cpu")
_CPUINFO = Path("/proc/cpuinfo")


def read_conditions(cpus: Path = _CPUS, cpuinfo: Path = _CPUINFO) -> Conditions:
    """Conditions of the first core that this process may run on: a pinned one runs on no other."""
    core = min(os.sched_getaffinity(0))
    policy = cpus / f"cpu{core}" / "cpufreq"
    khz = _text(policy / "scaling_cur_freq")
    mhz = float(khz) / 1000 if khz.isdigit() else _mhz_of_cpuinfo(core, _text(cpuinfo))
    governor = "".join(c for c in _text(policy / "scaling_governor") if c.isprintable())
    return Conditions(governor, mhz, round(os.getloadavg()[0], 2))


def read_gpu_conditions(device: int) -> Conditions:
    """Clocks of GPU `device` and load of the machine, whose processes share it with the one that launches."""
    clocks = current_clocks(device) or (None, None)
    return Conditions("", clocks[0], round(os.getloadavg()[0], 2), memory_mhz=clocks[1])


def _mhz_of_cpuinfo(core: int, text: str) -> float | None:
    """Virtual machines have no cpufreq, but most report a clock."""
    found = re.search(rf"^processor\s*:\s*{core}$.*?^cpu MHz\s*:\s*([\d.]+)$", text, re.MULTILINE | re.DOTALL)
    return float(found[1]) if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
