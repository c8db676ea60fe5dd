"""Where the planes of an image batch lie: row-major NCHW or Planes without phases."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsetvm.core.layout import Layout, Plain, Planes
from sparsetvm.errors import SparseTvmError


@dataclass(frozen=True)
class Images:
    """Plane p of `planes` starts at p * plane_stride, its pixel (y, x) lies at origin + y * row_stride + x (floats)."""

    planes: int
    height: int
    width: int
    origin: int
    row_stride: int
    plane_stride: int

    @property
    def outside(self) -> int:
        """Floats of a plane before its first row and after its last."""
        return self.plane_stride - self.height * self.row_stride


def images_of(layout: Layout, shape: tuple[int, ...]) -> Images:
    """Geometry of a (batch, channels, height, width) tensor. Raises SparseTvmError for other layouts."""
    planes, (height, width) = math.prod(shape[:2]), shape[2:]
    if isinstance(layout, Planes) and layout.phases == (1, 1):
        return Images(planes, height, width, layout.origin, layout.row_stride, layout.plane_stride)
    if isinstance(layout, Plain):
        return Images(planes, height, width, 0, width, height * width)
    raise SparseTvmError(f"{layout} is not an image layout", hint="convert the tensor to Planes without phases")
