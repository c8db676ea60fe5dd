"""Copy a tensor of any type to another place on the same GPU."""

from __future__ import annotations

from sparsetvm.schedules.cuda.launch import Launch

_BLOCK = 256
_MAX_BLOCKS = 528


def copy_launch(nbytes: int) -> Launch:
    """Copy `nbytes` bytes from the first tensor to the second; both start at a multiple of 4 bytes."""
    words = nbytes // 4
    blocks = min(_MAX_BLOCKS, max(1, -(-words // _BLOCK)))
    return Launch("copy.cu", "copy_bytes", (), (blocks, 1, 1), _BLOCK, scalars=(words, nbytes))
