"""A CUDA kernel as a template hands it over: source file, compile-time constants, and how it is launched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TensorMap:
    """What the copy engine must know of X (float16) to copy boxes of it: a matrix of rows x columns, `pitch` numbers
    from row to row (a multiple of 8); boxes of 64 columns x `box_rows` rows, swizzled as `copy_box` of wgmma.cuh says.
    """

    rows: int
    columns: int
    pitch: int
    box_rows: int


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    source: path of a .cu file, relative to this one's folder. entry: its `extern "C" __global__` function. defines:
    macros (all named SP_...) that shape the code: equal (source, entry, defines) share one compiled kernel, so what
    differs from layer to layer (sizes, strides) is better a scalar. scalars: int32 arguments that follow the pointers.
    grid: blocks in x, y, z. block: threads of a block (x only). shared: bytes of dynamic shared memory. cluster: blocks
    of a cluster along x (compiled into the kernel as SP_CLUSTER). text: CUDA C++ of a generated kernel; `source` then
    only names it, and its includes are looked for beside this file. overlaps: the kernel calls wait_for_previous()
    (device.cuh) before it touches X, the residual or Y, so it may start while the kernel before it still runs. native:
    it uses instructions of its very architecture (sm_90a for sm_90). map: the kernel's last argument is a map of X.

    Arguments of the kernel: X, the residual (when the epilogue has one), the packed arrays, Y (all pointers), scalars,
    the map.
    """

    source: str
    entry: str
    defines: tuple[tuple[str, int | float], ...]
    grid: tuple[int, int, int]
    block: int
    shared: int = 0
    cluster: int = 1
    scalars: tuple[int, ...] = ()
    text: str | None = None
    overlaps: bool = False
    native: bool = False
    map: TensorMap | None = None

    @property
    def path(self) -> Path:
        return Path(__file__).parent / self.source

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where the source's includes are looked for: beside it, then beside this file."""
        return tuple(dict.fromkeys((self.path.parent, Path(__file__).parent)))
