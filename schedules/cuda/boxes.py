"""What templates share whose X, in float16, the copy engine of Hopper brings to a ring in shared memory (ring.cuh)."""

from __future__ import annotations

from sparsetvm.schedules.base import Template
from sparsetvm.schedules.cuda.epilogue import epilogue_defines
from sparsetvm.schedules.cuda.geometry import flat_geometry
from sparsetvm.schedules.cuda.launch import Launch, TensorMap
from sparsetvm.schedules.cuda.panels import supports_panels

from sparsetvm.core.config import Config
from sparsetvm.core.layout import HalfTiled
from sparsetvm.core.target import Target
from sparsetvm.core.workload import Workload
from sparsetvm.space.knobs import Choice
from sparsetvm.space.space import Space

_ALIGNMENT = 1024  # bytes: of boxes in shared memory
_BARRIERS = 16  # bytes: two a stage
_CLUSTER_BARRIER = 16  # bytes: what counts the sums that arrive, as aligned as these are
_SUM_BYTES = 4
_MEETING = 800  # clocks of a barrier of a cluster, and until what was sent has arrived
# Multiprocessors that clusters of so many blocks reach with one block each, measured (30 clusters of four on 132).
_REACHED = {1: 1.0, 2: 1.0, 4: 120 / 132}


class BoxTemplate(Template):
    """A template with one knob, the shape of its blocks, and an estimate for each."""

    arithmetic = "float16"
    shapes: tuple[str, ...]  # numbers as `shape_sizes` reads them

    def space(self, workload: Workload, target: Target) -> Space:
        return Space(self.name, (Choice("shape", self.shapes),))

    def default(self, workload: Workload, target: Target) -> Config:
        """The config with the smallest estimate."""
        return self.smallest_estimate(workload, target)


def shape_sizes(config: Config) -> tuple[int, ...]:
    """The numbers of the knob `shape`, which "x" and "-" part."""
    return tuple(int(size) for size in config.str("shape").replace("x", "-").split("-"))


def reads_boxes(workload: Workload, target: Target) -> bool:
    """True for products in float16 whose X, one matrix in float16, the copy engine of Hopper can copy in boxes."""
    hopper = (target.kind, target.isa) == ("cuda", "sm_90")
    return (
        hopper and workload.op == "matmul" and isinstance(workload.layout_in, HalfTiled) and supports_panels(workload)
    )


def ring_bytes(stages: int, stage: int, split: int = 1) -> int:
    """Shared memory of a ring (ring.cuh). stage: bytes of X, of W and of what a kernel adds to each stage. split:
    blocks that split K.
    """
    return _ALIGNMENT + stages * (stage + _BARRIERS) + (_CLUSTER_BARRIER if split > 1 else 0)


def split_clocks(sums: int, split: int, sent: float) -> float:
    """What a block that has `sums` sums takes for those that it sends and gets; sent: bytes a clock."""
    return _MEETING + _SUM_BYTES * sums * (split - 1) / split / sent if split > 1 else 0.0


def split_share(blocks: int, split: int, sms: int) -> int:
    """Blocks of the multiprocessor that gets most of them, of a launch of clusters of `split`."""
    return -(-blocks // int(sms * _REACHED[split]))


def box_launch(
    kernel: str, defines: tuple[tuple[str, int | float], ...], workload: Workload, grid: tuple[int, int], threads: int,
    shared: int, columns: int, scalars: tuple[int, ...] = (), native: bool = True, cluster: int = 1,
) -> Launch:  # fmt: skip
    """The launch of the kernel in the .cu file of that name. columns: of W, so rows of X, that a box brings.

    grid: blocks in x and y. scalars: what the kernel takes between the number of rows and that of positions. cluster:
    blocks along x that split K (cluster_sums.cuh).
    """
    g = flat_geometry(workload)
    return Launch(
        f"{kernel}.cu",
        kernel,
        (
            *(*defines, ("SP_CLUSTER", cluster), ("SP_Y_HALF", int(workload.layout_out.half))),
            *epilogue_defines(workload.epilogue),
        ),
        (*grid, 1),
        threads,
        shared,
        cluster,
        (workload.m, *scalars, g.positions, g.y_row, g.r_row),
        overlaps=True,
        native=native,
        map=TensorMap(workload.k, g.positions, g.x_row, columns),
    )
