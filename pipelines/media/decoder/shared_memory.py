"""Memory that a decoder and its parent share: one segment, frames and then samples."""

import fcntl
import math
import mmap
import os
import tempfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_POPULATE = getattr(mmap, "MAP_POPULATE", 0)
"""On Linux all pages are mapped at once, because all of them are read or written."""


class SharedMemory:
    """Memory of a fixed size without a name, which ends with its last user."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.num_bytes = os.lseek(file, 0, os.SEEK_END)
        self._map: mmap.mmap | None = None

    @classmethod
    def new(cls, num_bytes: int) -> "SharedMemory":
        """Memory that takes room as it is written to, and no more than its size."""
        if not hasattr(os, "memfd_create"):  # no Linux
            with tempfile.TemporaryFile() as temporary:
                file = os.dup(temporary.fileno())
                os.ftruncate(file, num_bytes)
                return cls(file)
        file = os.memfd_create("segment", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(file, num_bytes)
        # A decoder in the hands of a file could otherwise shrink the memory under its parent, which
        # would die of that, fill the machine's memory, or seal it against the parent.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
        return cls(file)

    def arrays(
        self, shape: Sequence[int] | None, num_samples: int
    ) -> tuple[NDArray[np.uint8] | None, NDArray[np.int16] | None]:
        """The frames and the samples that are in it.

        Raises:
            ValueError: If they do not fit.
        """
        num_pixels = math.prod(shape) if shape else 0
        num_bytes = num_pixels + 2 * num_samples
        if num_bytes > self.num_bytes:
            raise ValueError(f"a segment of {num_bytes} bytes, and there is room for less")
        if not num_bytes:
            return None, None
        if self._map is None or len(self._map) < num_bytes:
            self._map = mmap.mmap(self.file, num_bytes, mmap.MAP_SHARED | _POPULATE)
        data = np.frombuffer(self._map, np.uint8, num_bytes)
        return (
            data[:num_pixels].reshape(shape) if shape else None,
            # Behind an odd number of pixels they are not aligned, which NumPy takes.
            data[num_pixels:].view(np.int16) if num_samples else None,
        )

    def close(self) -> None:
        """Lets go of it."""
        self._map = None
        os.close(self.file)
