"""Memory of a training on a CPU: kept by the process between steps instead of given back.

A step allocates and frees gigabytes. By default the C library returns large blocks to the system,
which clears each page again at the next step: 5 % of a ViT-B's step, and more in a virtual machine.

Source: mallopt(3).
"""

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Makes this process reuse the memory that it frees; returns whether the C library can do so.

    The process then holds the largest amount that it ever needed.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    # Blocks that are mapped one by one are unmapped when freed, so there must be none.
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
