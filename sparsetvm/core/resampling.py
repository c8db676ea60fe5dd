"""Where the elements of a resized axis lie on the axis that they come from (ONNX's Resize)."""

from __future__ import annotations

import msgspec
import numpy as np

COORDINATES = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "asymmetric", "align_corners")


class Resampling(msgspec.Struct, frozen=True):
    """One axis of `size_in` elements resized to `size_out`, by `scale` (which may differ from their ratio).

    coordinates: one of COORDINATES. mode: "linear", or "nearest" with ONNX's nearest_mode in `rounding`.
    """

    size_in: int
    size_out: int
    scale: float
    coordinates: str = "half_pixel"
    mode: str = "linear"
    rounding: str = "round_prefer_floor"

    def positions(self) -> np.ndarray:
        """(size_out,) float64 positions on the input's axis; some lie beyond its ends. Raises KeyError."""
        at = np.arange(self.size_out, dtype=np.float64)
        length = self.scale * self.size_in
        if self.coordinates == "pytorch_half_pixel" and self.size_out == 1:
            return np.full(1, -0.5)
        if self.coordinates == "asymmetric":
            return np.asarray(at / self.scale)
        if self.coordinates == "align_corners":
            return np.asarray(at * 0.0 if length == 1 else at * (self.size_in - 1) / (length - 1))
        if self.coordinates == "half_pixel_symmetric":
            middle = self.size_in / 2 * (1 - self.size_out / length)
            return np.asarray(middle + (at + 0.5) / self.scale - 0.5)
        if self.coordinates in ("half_pixel", "pytorch_half_pixel"):
            return np.asarray((at + 0.5) / self.scale - 0.5)
        raise KeyError(self.coordinates)

    def nearest(self) -> np.ndarray:
        """(size_out,) indices of the elements that are picked."""
        at = self.positions()
        if self.rounding == "floor":
            index = np.floor(at)
        elif self.rounding == "ceil":
            index = np.ceil(at)
        else:
            index = np.ceil(at - 0.5) if self.rounding == "round_prefer_floor" else np.floor(at + 0.5)
        return np.asarray(np.clip(index, 0, self.size_in - 1), np.int64)

    def neighbours(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(first, second, weight of the second): what each element is interpolated from; for "nearest" both are one."""
        if self.mode == "nearest":
            index = self.nearest()
            return index, index, np.zeros(self.size_out)
        at = np.clip(self.positions(), 0, self.size_in - 1)
        first = np.floor(at).astype(np.int64)
        return first, np.minimum(first + 1, self.size_in - 1), at - first

    def reach(self, lanes: int) -> int:
        """Over how many elements of the input the sources of `lanes` neighbouring elements spread, at most."""
        first, second, _ = self.neighbours()
        return max(int(second[at : at + lanes].max() - first[at]) for at in range(0, self.size_out, lanes)) + 1
