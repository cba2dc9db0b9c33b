"""Temporary local copies of remote files for decoding, within a disk budget.

FFmpeg seeks in a file, and a file may not fit in memory, so a remote file is copied to disk and
removed afterwards. The workers of a machine share the budget. Each worker locks the copy that it
reserves, so that the next worker recognizes and removes the copies of a killed one.

A file whose bytes are read for their hash is kept while the budget has room, so that decoding on
the same machine need not fetch it again:

    hashing    ID.SIZE.spool (locked) --> HASH.SIZE.kept           removed if others need the room
    decoding                              HASH.SIZE.kept --> ID.SIZE.spool (locked) --> removed
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
from pipelines.sources.kept_copy import KeptCopy, removed_after

CHUNK_BYTES = 4_000_000
ATTEMPTS = 3
"""Number of times that a transfer is tried before the file is rejected."""
CHANGED = "the file has changed since it was listed"
_RETRY_SECONDS = 1.0
_WAIT_SECONDS = 0.2
_KEPT_SECONDS = 3600.0
"""Age at which a kept copy that nobody has decoded is removed."""


class Spool:
    """The disk budget for remote files on this machine."""

    def __init__(self, *, max_bytes: int, folder: Path | None = None) -> None:
        self._max_bytes = max_bytes
        self._folder = folder or Path(tempfile.gettempdir()) / f"xkd-spool-{os.getuid()}"

    @contextmanager
    def local_copy(
        self, path: str, source_hash: str | None, byte_size: int | None = None
    ) -> Iterator[str]:
        """Yields a local path of a file, which is the file itself unless it is remote.

        The remote file is closed while this waits for space and while the copy is used, because
        servers close idle connections.

        Args:
            path: A path, or a URI.
            source_hash: The hash of the file when it was listed, or None if it was not hashed.
            byte_size: The size of the file then, or None if unknown.

        Raises:
            DecodeError: If the file cannot be read, exceeds the budget, or no longer matches
                `source_hash`.
            OSError: If the copy cannot be written.
        """
        if not is_uri(path):
            yield path
            return
        if source_hash is not None and (kept := self._take(path, source_hash)) is not None:
            with removed_after(kept):
                yield kept.name
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

    @contextmanager
    def keeping(self, path: str, byte_size: int | None) -> Iterator[KeptCopy]:
        """Yields what a file is written to while it is hashed; it is removed unless it is named.

        It holds nothing if the budget has no room, or the size is unknown.
        """
        copy = None
        if byte_size is not None and byte_size <= self._max_bytes:
            with suppress(OSError):
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                copy = self._try_reserve(byte_size, path, may_evict=False)
        kept = KeptCopy(copy)
        try:
            yield kept
        finally:
            kept.close()

    def forget(self) -> None:
        """Removes the copies that were kept and not decoded."""
        self._remove_kept(-1)

    def _take(self, path: str, source_hash: str) -> BinaryIO | None:
        """Returns the copy that was kept of a file, if it is there and whole."""
        with suppress(OSError), open(self._folder / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for found in self._folder.glob(f"{source_hash}.*.kept"):
                name = self._name(int(found.name.split(".")[1]), path)
                found.rename(name)
                copy = open(name, "r+b")  # noqa: SIM115 - the caller closes it
                fcntl.flock(copy, fcntl.LOCK_EX)
                if hashlib.file_digest(copy, "sha256").hexdigest() == source_hash:
                    return copy
                copy.close()
                name.unlink()
        return None

    def _remove_kept(self, most: int) -> int:
        """Removes old copies, and the oldest until there are at most so many bytes.

        Returns:
            The bytes that are left.
        """
        files = []
        for file in self._folder.glob("*.kept"):
            with suppress(OSError):
                files.append((file.stat().st_mtime, file))
        total = sum(int(file.name.split(".")[1]) for _, file in files)
        for modified, file in sorted(files):
            if total > most or modified < time.time() - _KEPT_SECONDS:
                file.unlink(missing_ok=True)
                total -= int(file.name.split(".")[1])
        return total

    def _needed(self, path: str, byte_size: int | None) -> int:
        """Returns the space for a file, in bytes: the whole budget if the size is unknown."""
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
        """Yields an empty file that reserves part of the budget, and removes it at the end."""
        with _writing_to(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            while (copy := self._try_reserve(needed, path)) is None:
                time.sleep(_WAIT_SECONDS)
        with removed_after(copy):
            yield copy

    def _try_reserve(self, needed: int, path: str, *, may_evict: bool = True) -> BinaryIO | None:
        with open(self._folder / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            room = self._max_bytes - self._held() - needed
            if room < 0 or self._remove_kept(room if may_evict else self._max_bytes) > room:
                return None
            copy = open(self._name(needed, path), "x+b")  # noqa: SIM115 - the caller closes it
            fcntl.flock(copy, fcntl.LOCK_EX)
            return copy

    def _name(self, needed: int, path: str) -> Path:
        suffix = PurePosixPath(path).suffix  # FFmpeg uses it if the content is ambiguous
        suffix = suffix if re.fullmatch(r"\.\w{1,8}", suffix, re.ASCII) else ""
        return self._folder / f"{uuid.uuid4().hex}.{needed}.spool{suffix}"

    def _held(self) -> int:
        """Returns the bytes that live workers hold, and removes the copies of dead workers."""
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
    """Returns the substitute hash of an object that is too large to hash by content."""
    return hashlib.sha256(f"version:{version}:{byte_size}".encode()).hexdigest()


@contextmanager
def _reading(path: str) -> Iterator[RemoteFile]:
    """Opens a remote file and converts the errors of its client library."""
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
    """Adds the folder to disk errors, to tell them from errors of the output disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def _transfer(
    remote: RemoteFile, copy: BinaryIO, room: int, source_hash: str | None, *, is_budget: bool
) -> None:
    """Copies the bytes and checks that they match `source_hash`.

    `room` is the whole budget, or the size of the file when it was listed, in bytes.
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
    """Yields the bytes of a remote file in chunks."""
    while True:
        try:
            chunk = stream.read(CHUNK_BYTES)
        except Exception as error:  # client libraries differ in what they raise
            raise BrokenOffError(one_line(error)) from error
        if not chunk:
            return
        yield chunk
