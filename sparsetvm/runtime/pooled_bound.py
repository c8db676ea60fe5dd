"""How far minimal filtering may be apart from ONNX Runtime, whose convolution adds each product by itself.

The kernel computes four rows of outputs by minimal filtering, y = A ((G g) * (B d)). Each of the three steps adds and
multiplies as sums do, so the error of an output is at most

    gamma(n) * |A| ((|G| |g|) * (|B| |d|)),    n = the additions and multiplications in its longest chain

(N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1). A maximum is off by no more
than what it is taken of.
"""

from __future__ import annotations

import numpy as np

from sparsetvm.core.graph import Node
from sparsetvm.core.workload import ConvGeometry
from sparsetvm.formats.toom_cook import OUTPUTS, filter_matrix, input_matrix, output_matrix, rows_of_parities
from sparsetvm.runtime.layer_bound import SLOPES, UNIT, LayerReference, Session


class PooledReference(LayerReference):
    """A convolution with 2 x 2 max pooling; calls are those of LayerReference, without a residual."""

    def __init__(self, layer: Node, open_session: Session) -> None:
        super().__init__(layer, "float32", open_session)
        conv: ConvGeometry = layer.attrs["conv"]
        self._conv, bias = conv, layer.attrs["bias"]
        taps = np.abs(layer.attrs["weight"].astype(np.float64)).reshape(-1, conv.in_channels, *conv.kernel)
        self._filters = np.einsum("py,mcyx->mpcx", np.abs(filter_matrix(conv.kernel[0])), taps)
        self._bias = np.abs(np.zeros(len(taps)) if bias is None else bias.astype(np.float64))
        terms = conv.in_channels * conv.kernel[1] + 3 * (conv.kernel[0] + OUTPUTS) + 2
        self._gamma = terms * UNIT / (1 - terms * UNIT)

    def __call__(self, x: np.ndarray, residual: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """The pooled result, and the largest distance from it of any correct one; both float64."""
        exact, limit = super().__call__(x, residual)
        # No slope of a rising activation is above 1.
        limit = limit + self._gamma * self._absolute_sums(np.abs(x.astype(np.float64)))
        return _pooled(exact), _pooled(limit)

    def _absolute_sums(self, x: np.ndarray) -> np.ndarray:
        """|A| ((|G| |g|) * (|B| |x|)) for all outputs of the convolution, and the bias."""
        conv, (kh, kw) = self._conv, self._conv.kernel
        height, width, tiles = conv.out_height, conv.out_width, -(-conv.out_height // OUTPUTS)
        top, left, _, right = conv.pads
        below = tiles * OUTPUTS + kh - 1 - top - conv.in_height
        padded = np.pad(x, ((0, 0), (0, 0), (top, max(0, below)), (left, right)))
        out = np.empty((len(x), len(self._filters), tiles * OUTPUTS, width))
        for tile in range(tiles):
            rows = padded[:, :, tile * OUTPUTS : tile * OUTPUTS + kh + OUTPUTS - 1]
            points = np.einsum("pr,bcrx->bpcx", np.abs(input_matrix(kh)), rows)
            windows = np.lib.stride_tricks.sliding_window_view(points, kw, axis=3)
            products = np.einsum("mpcx,bpcwx->bmpw", self._filters, windows)
            rows_out = np.einsum("ip,bmpw->bmiw", np.abs(output_matrix(kh)), products)
            out[:, :, tile * OUTPUTS : (tile + 1) * OUTPUTS] = rows_out
        return np.asarray(out[:, :, :height] + self._bias[:, None, None])


class MinimalReference(LayerReference):
    """A convolution of stride 2 by x86.dense_minimal: the same for the rows of each parity, whose points are added."""

    def __init__(self, layer: Node, open_session: Session) -> None:
        super().__init__(layer, "float32", open_session)
        conv: ConvGeometry = layer.attrs["conv"]
        self._conv, self._high = conv, -(-conv.kernel[0] // 2)
        taps = np.abs(layer.attrs["weight"].astype(np.float64)).reshape(-1, conv.in_channels, *conv.kernel)
        bias = layer.attrs["bias"]
        self._bias = np.abs(np.zeros(len(taps)) if bias is None else bias.astype(np.float64))
        matrix = np.abs(filter_matrix(self._high))
        self._filters = [np.einsum("py,mcyx->mpcx", matrix, rows) for rows in rows_of_parities(taps)]
        terms = 2 * conv.in_channels * conv.kernel[1] + 3 * (self._high + OUTPUTS) + 2
        self._gamma = terms * UNIT / (1 - terms * UNIT)

    def __call__(self, x: np.ndarray, residual: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """The result, and the largest distance from it of any correct one; both float64."""
        exact, limit = super().__call__(x, residual)
        steepest = SLOPES[self._epilogue.activation]
        return exact, limit + steepest * self._gamma * self._absolute_sums(np.abs(x.astype(np.float64)))

    def _absolute_sums(self, x: np.ndarray) -> np.ndarray:
        conv, (kh, kw), count = self._conv, self._conv.kernel, self._high + OUTPUTS - 1
        height, width, tiles = conv.out_height, conv.out_width, -(-conv.out_height // OUTPUTS)
        padded = np.pad(x, ((0, 0), (0, 0), (conv.pads[0], conv.pads[2]), (conv.pads[1], conv.pads[3])))
        out = np.empty((len(x), len(self._bias), tiles * OUTPUTS, width))
        for tile in range(tiles):
            total: np.ndarray | float = 0.0
            for first, filters in enumerate(self._filters):
                # As the kernel does: below the last row that an output reads, that one again.
                last = height - 1 + len(range(first, kh, 2)) - 1
                rows = padded[:, :, first + 2 * np.minimum(tile * OUTPUTS + np.arange(count), last)]
                points = np.einsum("pr,bcrx->bpcx", np.abs(input_matrix(self._high)), rows)
                windows = np.lib.stride_tricks.sliding_window_view(points, kw, axis=3)[:, :, :, ::2][:, :, :, :width]
                total = total + np.einsum("mpcx,bpcwx->bmpw", filters, windows)
            rows_out = np.einsum("ip,bmpw->bmiw", np.abs(output_matrix(self._high)), total)
            out[:, :, tile * OUTPUTS : (tile + 1) * OUTPUTS] = rows_out
        return np.asarray(out[:, :, :height] + self._bias[:, None, None])


def _pooled(y: np.ndarray) -> np.ndarray:
    """Maxima of 2 x 2, NaN where there is one."""
    batch, channels, height, width = y.shape
    even = y[:, :, : height // 2 * 2, : width // 2 * 2]
    return np.asarray(even.reshape(batch, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5)))
