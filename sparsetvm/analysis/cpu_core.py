"""What one x86 core does per clock, as measured: roofline.py and the defaults of templates build on it."""

from __future__ import annotations

from dataclasses import dataclass

from sparsetvm.core.target import Target


@dataclass(frozen=True)
class CpuCore:
    """Per cycle: vector FMAs, whole-vector loads, broadcast loads; bytes of cold code; rows kept in registers; share
    of the bound that sparse code reaches: less where that is its loads.
    """

    fma: float
    loads: float
    broadcasts: float
    code_bytes: float
    rows: int
    efficiency: float

    @property
    def streams_code(self) -> bool:
        """True where straight-line code that lies in L2 or L3 runs as fast as from L1I: it has one FMA per clock to
        feed, 10 bytes (measured on a Zen 4 up to 4 MB of code).
        """
        return self.fma == 1.0


_ZEN4 = CpuCore(fma=1.0, loads=1.0, broadcasts=2.0, code_bytes=16.0, rows=28, efficiency=0.90)
_AVX512 = CpuCore(fma=2.0, loads=2.0, broadcasts=2.0, code_bytes=8.0, rows=28, efficiency=0.82)
_AVX2 = CpuCore(fma=2.0, loads=2.0, broadcasts=2.0, code_bytes=12.0, rows=12, efficiency=0.82)


def core_of(target: Target) -> CpuCore:
    """The core that a CPU target names."""
    if target.isa == "avx2":
        return _AVX2
    return _ZEN4 if target.mcpu == "znver4" else _AVX512
