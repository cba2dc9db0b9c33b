"""Memory shared by a decoder and its parent. Holds the frames and then the samples of a segment."""

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
    """Unnamed memory of fixed size, which is freed with its last user."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.num_bytes = os.lseek(file, 0, os.SEEK_END)
        self._map: mmap.mmap | None = None

    @classmethod
    def new(cls, num_bytes: int) -> "SharedMemory":
        """Creates memory that is allocated as it is written, up to its size."""
        if not hasattr(os, "memfd_create"):  # not Linux
            with tempfile.TemporaryFile() as temporary:
                file = os.dup(temporary.fileno())
                os.ftruncate(file, num_bytes)
                return cls(file)
        file = os.memfd_create("segment", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(file, num_bytes)
        # A decoder that a file controls could otherwise shrink the memory under its parent, which
        # would die of that, fill the machine's memory, or seal it against the parent.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
        return cls(file)

    def arrays(
        self, shape: Sequence[int] | None, num_samples: int
    ) -> tuple[NDArray[np.uint8] | None, NDArray[np.int16] | None]:
        """Returns the frames and the samples in the memory.

        Raises:
            ValueError: If they do not fit into it.
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
            # After an odd number of pixels they are unaligned, which NumPy supports.
            data[num_pixels:].view(np.int16) if num_samples else None,
        )

    def close(self) -> None:
        """Frees the memory."""
        self._map = None
        os.close(self.file)
