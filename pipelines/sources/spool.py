"""Remote files on the local disk while they are decoded, within a budget.

FFmpeg needs to jump about in a file, and a file is never held in memory, so a remote one is copied
to disk and removed afterwards. The workers of a machine share the budget: each holds its part as a
file that it has locked, so what a killed worker leaves is known as such and removed by the next.
"""

import fcntl
import hashlib
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pipelines.errors import UserError
from pipelines.filesystems import RemoteFile, opened
from pipelines.media.container import DecodeError
from pipelines.paths import is_uri
from pipelines.redaction import one_line

CHUNK_BYTES = 4_000_000
ATTEMPTS = 3
"""Times that a transfer is begun before the file is given up."""
CHANGED = "the file has changed since it was listed"
_RETRY_SECONDS = 1.0
_WAIT_SECONDS = 0.2


class Spool:
    """The disk that remote files take on this machine."""

    def __init__(self, *, max_bytes: int, folder: Path | None = None) -> None:
        self._max_bytes = max_bytes
        self._folder = folder or Path(tempfile.gettempdir()) / f"xkd-spool-{os.getuid()}"

    @contextmanager
    def local_copy(
        self, path: str, source_hash: str | None, byte_size: int | None = None
    ) -> Iterator[str]:
        """A local path of a file, which is the file itself unless it is remote.

        The file is not open while this waits for room, or while the copy is used: a server ends a
        connection on which nothing is read.

        Args:
            path: A path, or a URI.
            source_hash: What it hashed to when it was listed, None if it was not.
            byte_size: How large it was then, None if that is not known.

        Raises:
            DecodeError: If it cannot be read, is larger than the budget, or is not the file any
                more that `source_hash` was made of.
            OSError: If the copy cannot be written.
        """
        if not is_uri(path):
            yield path
            return
        for attempt in range(1, ATTEMPTS + 1):
            try:
                needed = self._needed(path, byte_size)
                with self._reserved(needed, path) as copy:
                    with _reading(path) as remote:
                        is_budget = needed == self._max_bytes
                        _transfer(remote, copy, needed, source_hash, is_budget=is_budget)
                    yield copy.name
                    return
            except BrokenOffError as error:
                if attempt == ATTEMPTS:
                    raise DecodeError("unreadable", f"{error}, {attempt} times") from error
                time.sleep(attempt * _RETRY_SECONDS)

    def _needed(self, path: str, byte_size: int | None) -> int:
        """How much room a file takes; all of it if its store does not say."""
        if byte_size is None:
            with _reading(path) as remote:
                byte_size = remote.byte_size
        needed = self._max_bytes if byte_size is None else byte_size
        if needed > self._max_bytes:
            raise DecodeError(
                "too_large", f"{needed} bytes, limits.max_spool_bytes ({self._max_bytes})"
            )
        return needed

    @contextmanager
    def _reserved(self, needed: int, path: str) -> Iterator[BinaryIO]:
        """An empty file that stands for its part of the budget, removed in the end."""
        with _writing_to(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            while (copy := self._try_reserve(needed, path)) is None:
                time.sleep(_WAIT_SECONDS)
        try:
            yield copy
        finally:
            os.unlink(copy.name)
            with suppress(OSError):  # what is not written yet is not wanted any more
                copy.close()

    def _try_reserve(self, needed: int, path: str) -> BinaryIO | None:
        with open(self._folder / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._held() + needed > self._max_bytes:
                return None
            suffix = PurePosixPath(path).suffix  # FFmpeg looks at it where the bytes say little
            suffix = suffix if re.fullmatch(r"\.\w{1,8}", suffix, re.ASCII) else ""
            name = self._folder / f"{uuid.uuid4().hex}.{needed}.spool{suffix}"
            copy = open(name, "x+b")  # noqa: SIM115 - closed by who asked for it
            fcntl.flock(copy, fcntl.LOCK_EX)
            return copy

    def _held(self) -> int:
        """Bytes that living workers hold; what dead ones left is removed."""
        total = 0
        for file in self._folder.glob("*.spool*"):
            with suppress(FileNotFoundError), open(file, "rb") as other:
                try:
                    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    total += int(file.name.split(".")[1])
                else:
                    file.unlink(missing_ok=True)
        return total


def version_hash(version: str, byte_size: int | None) -> str:
    """What stands for the bytes of an object that is too large to be read for its hash."""
    return hashlib.sha256(f"version:{version}:{byte_size}".encode()).hexdigest()


@contextmanager
def _reading(path: str) -> Iterator[RemoteFile]:
    """Opens a remote file, with one kind of error whatever its client library raises."""
    manager = opened(path)
    try:
        remote = manager.__enter__()
    except (FileNotFoundError, PermissionError, UserError) as error:
        raise DecodeError("unreadable", one_line(error)) from error
    except Exception as error:
        raise BrokenOffError(one_line(error)) from error
    try:
        yield remote
    finally:
        manager.__exit__(None, None, None)


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Says of an error of the disk which one it is: not the output's."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def _transfer(
    remote: RemoteFile, copy: BinaryIO, room: int, source_hash: str | None, *, is_budget: bool
) -> None:
    """Copies the bytes and makes sure that they are those that `source_hash` was made of.

    `room` is the whole budget, or the size that the file had when it was listed.
    """
    folder = Path(copy.name).parent
    digest = hashlib.sha256()
    num_bytes = 0
    for chunk in chunks(remote.stream):
        num_bytes += len(chunk)
        if num_bytes > room:
            if is_budget:
                raise DecodeError("too_large", f"more than limits.max_spool_bytes ({room})")
            raise DecodeError("unreadable", CHANGED)
        digest.update(chunk)
        with _writing_to(folder):
            copy.write(chunk)
    if remote.byte_size is not None and num_bytes != remote.byte_size:
        raise BrokenOffError(f"{num_bytes} of {remote.byte_size} bytes came")
    with _writing_to(folder):
        copy.flush()
    version = version_hash(remote.version, remote.byte_size) if remote.version else None
    if source_hash is not None and source_hash not in (digest.hexdigest(), version):
        raise DecodeError("unreadable", CHANGED)


class BrokenOffError(Exception):
    """A transfer that ended too early."""


def chunks(stream: BinaryIO) -> Iterator[bytes]:
    """The bytes of a remote file, some at a time."""
    while True:
        try:
            chunk = stream.read(CHUNK_BYTES)
        except Exception as error:  # each client library has its own
            raise BrokenOffError(one_line(error)) from error
        if not chunk:
            return
        yield chunk
