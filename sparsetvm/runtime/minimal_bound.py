"""How far minimal filtering may be apart from ONNX Runtime, whose convolution adds each product by itself.

The kernels compute four rows of outputs by minimal filtering, y = A ((G g) * (B d)). Each of the three steps adds and
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


class MinimalReference(LayerReference):
    """A convolution of one group by x86.dense_winograd (stride 1) or x86.dense_minimal (stride 2).

    With stride 2 the rows of each parity are filtered alike, and their points are added.
    """

    def __init__(self, layer: Node, open_session: Session) -> None:
        super().__init__(layer, "float32", open_session)
        conv: ConvGeometry = layer.attrs["conv"]
        self._conv, self._stride = conv, conv.stride[0]
        self._high = -(-conv.kernel[0] // self._stride)
        taps = np.abs(layer.attrs["weight"].astype(np.float64)).reshape(-1, conv.in_channels, *conv.kernel)
        bias = layer.attrs["bias"]
        self._bias = np.abs(np.zeros(len(taps)) if bias is None else bias.astype(np.float64))
        matrix, phases = np.abs(filter_matrix(self._high)), rows_of_parities(taps) if self._stride == 2 else [taps]
        # (points, m, channels * kw) of each phase
        self._filters = [
            np.einsum("py,mcyx->pmcx", matrix, rows).reshape(len(matrix), len(taps), -1) for rows in phases
        ]
        terms = self._stride * conv.in_channels * conv.kernel[1] + 3 * (self._high + OUTPUTS) + 2
        self._gamma = terms * UNIT / (1 - terms * UNIT)

    def __call__(self, x: np.ndarray, residual: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """The result, and the largest distance from it of any correct one; both float64."""
        exact, limit = super().__call__(x, residual)
        steepest = SLOPES[self._epilogue.activation]
        return exact, limit + steepest * self._gamma * self._absolute_sums(np.abs(x.astype(np.float64)))

    def _absolute_sums(self, x: np.ndarray) -> np.ndarray:
        """|A| ((|G| |g|) * (|B| |x|)) for all outputs of the convolution, and the bias."""
        conv, (kh, kw), stride = self._conv, self._conv.kernel, self._stride
        count, matrix = self._high + OUTPUTS - 1, np.abs(input_matrix(self._high))
        height, width, tiles = conv.out_height, conv.out_width, -(-conv.out_height // OUTPUTS)
        padded = np.pad(x, ((0, 0), (0, 0), (conv.pads[0], conv.pads[2]), (conv.pads[1], conv.pads[3])))
        out = np.empty((len(x), len(self._bias), tiles * OUTPUTS, width))
        for tile in range(tiles):
            total: np.ndarray | float = 0.0
            for first, filters in enumerate(self._filters):
                # As the kernels do, below the last row that an output reads that one again; with a pool zeros, so less.
                last = height - 1 + len(range(first, kh, stride)) - 1
                rows = padded[:, :, first + stride * np.minimum(tile * OUTPUTS + np.arange(count), last)]
                points = np.einsum("pr,bcrx->bpcx", matrix, rows)
                windows = np.lib.stride_tricks.sliding_window_view(points, kw, axis=3)[
                    :, :, :, : stride * width : stride
                ]
                columns = windows.transpose(0, 1, 2, 4, 3).reshape(len(x), count, -1, width)
                total = total + filters @ columns
            rows_out = np.einsum("ip,bpmw->bmiw", np.abs(output_matrix(self._high)), total)
            out[:, :, tile * OUTPUTS : (tile + 1) * OUTPUTS] = rows_out
        return np.asarray(out[:, :, :height] + self._bias[:, None, None])


class PooledReference(MinimalReference):
    """A convolution with 2 x 2 max pooling; calls are those of LayerReference, without a residual."""

    def __call__(self, x: np.ndarray, residual: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """The pooled result, and the largest distance from it of any correct one; both float64."""
        exact, limit = super().__call__(x, residual)
        return _pooled(exact), _pooled(limit)


def _pooled(y: np.ndarray) -> np.ndarray:
    """Maxima of 2 x 2, NaN where there is one."""
    batch, channels, height, width = y.shape
    even = y[:, :, : height // 2 * 2, : width // 2 * 2]
    return np.asarray(even.reshape(batch, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5)))
