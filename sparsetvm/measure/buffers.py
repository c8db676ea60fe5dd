"""Aligned buffers with guard zones, so that a write past either end is seen and a read past it spoils the result."""

from __future__ import annotations

import numpy as np

ALIGNMENT = 64  # what TVM's from_dlpack asks for: one cache line
GUARD = 4096  # bytes on either side, a multiple of ALIGNMENT
_FILL = 0xFF  # not a number as float, -1 as index


class GuardedBuffer:
    """A C-contiguous array at a 64-byte boundary between two guard zones of 4096 bytes."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype | type) -> None:
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._raw = np.full(nbytes + 2 * GUARD + ALIGNMENT, _FILL, np.uint8)
        self._start = -self._raw.ctypes.data % ALIGNMENT + GUARD
        self._stop = self._start + nbytes
        self.array: np.ndarray = self._raw[self._start : self._stop].view(dtype).reshape(shape)

    @classmethod
    def of(cls, array: np.ndarray) -> GuardedBuffer:
        """A guarded copy."""
        buffer = cls(array.shape, array.dtype)
        buffer.array[...] = array
        return buffer

    def intact(self) -> bool:
        """False when something wrote into a guard zone."""
        before = self._raw[self._start - GUARD : self._start]
        after = self._raw[self._stop : self._stop + GUARD]
        return bool((before == _FILL).all() and (after == _FILL).all())
