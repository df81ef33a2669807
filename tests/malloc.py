"""What the C library's malloc says of itself, where it is glibc 2.33 or newer."""

from __future__ import annotations

import ctypes

__all__ = ["MallocInfo", "malloc_info"]


class MallocInfo(ctypes.Structure):
    """``struct mallinfo2``: ``arena`` bytes of heap, ``uordblks`` of them given out, ``hblkhd`` bytes given out beside it, and more."""

    arena: int
    uordblks: int
    hblkhd: int
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def malloc_info() -> MallocInfo | None:
    """Return the figures of this moment, None where nobody has them."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return None
    mallinfo2.restype = MallocInfo
    figures: MallocInfo = mallinfo2()
    return figures
