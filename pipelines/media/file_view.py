"""An open file as FFmpeg reads it: by a descriptor, with a position of its own and no name."""

import io
import os
from typing import BinaryIO


class View(io.RawIOBase):
    """An open file with a position of its own, so that it can be read from two places."""

    def __init__(self, file: int | BinaryIO) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Reads from its position on."""
        if isinstance(self._file, int):
            data = os.pread(self._file, size if size >= 0 else self._size(), self._at)
        else:
            self._file.seek(self._at)
            data = self._file.read(size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves its position; gives the new one."""
        start = self._at if whence == os.SEEK_CUR else 0
        if whence == os.SEEK_END:
            start = self._size()
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        """Gives its position."""
        return self._at

    def _size(self) -> int:
        if isinstance(self._file, int):
            return os.lseek(self._file, 0, os.SEEK_END)
        return self._file.seek(0, os.SEEK_END)


class OwnedFile(View):
    """An open file that is closed with what reads it."""

    def __init__(self, file: int) -> None:
        super().__init__(file)
        self._descriptor = file

    def close(self) -> None:
        """Closes the file."""
        if not self.closed:
            super().close()
            os.close(self._descriptor)
