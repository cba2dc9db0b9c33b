"""The copy of a remote file that is being hashed, which decoding can use afterwards."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


class KeptCopy:
    """The copy of a file that is being hashed, or nothing."""

    def __init__(self, copy: BinaryIO | None) -> None:
        self._copy = copy

    def write(self, chunk: bytes) -> None:
        """Adds bytes; a full disk only ends the copy."""
        if self._copy is not None:
            try:
                self._copy.write(chunk)
            except OSError:
                self.close()

    def keep(self, source_hash: str, byte_size: int) -> None:
        """Leaves it for whoever decodes the file."""
        if self._copy is not None:
            with suppress(OSError):
                self._copy.flush()
                if os.fstat(self._copy.fileno()).st_size == byte_size:
                    name = Path(self._copy.name)
                    name.rename(name.with_name(f"{source_hash}.{byte_size}.kept"))

    def close(self) -> None:
        """Removes it, if it is not kept."""
        copy, self._copy = self._copy, None
        if copy is not None:
            with removed_after(copy):
                pass


@contextmanager
def removed_after(copy: BinaryIO) -> Iterator[None]:
    """Removes a file at the end."""
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(copy.name)
        with suppress(OSError):  # unwritten data is no longer needed
            copy.close()
