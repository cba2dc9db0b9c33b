"""File objects through which FFmpeg reads an open file, without learning its name."""

import io
import os
from typing import BinaryIO


class View(io.RawIOBase):
    """A view of an open file with its own position, so that two readers can share the file."""

    def __init__(self, file: int | BinaryIO) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Reads from its position."""
        if isinstance(self._file, int):
            data = os.pread(self._file, size if size >= 0 else self._size(), self._at)
        else:
            self._file.seek(self._at)
            data = self._file.read(size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves its position and returns the new one."""
        start = self._at if whence == os.SEEK_CUR else 0
        if whence == os.SEEK_END:
            start = self._size()
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        """Returns its position."""
        return self._at

    def _size(self) -> int:
        if isinstance(self._file, int):
            return os.lseek(self._file, 0, os.SEEK_END)
        return self._file.seek(0, os.SEEK_END)


class OwnedFile(View):
    """A view that closes the file when it is closed."""

    def __init__(self, file: int) -> None:
        super().__init__(file)
        self._descriptor = file

    def close(self) -> None:
        """Closes the file."""
        if not self.closed:
            super().close()
            os.close(self._descriptor)
