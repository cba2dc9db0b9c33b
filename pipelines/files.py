"""Atomic writes of files and folders, and locks between processes."""

import errno
import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipelines.errors import UserError


def temporary_name(path: Path) -> Path:
    """Returns a hidden path beside `path` to write to."""
    name = f".{path.name[:100]}.{uuid.uuid4().hex[:12]}.tmp"  # file names are limited to 255 bytes
    return path.with_name(name)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Writes a file or a folder atomically.

    The block writes to the temporary path that this yields. When the block ends, the content is
    synced and replaces `path`. When the block raises, the content is removed.

    Raises:
        OSError: If `path` cannot be written. Its previous content stays.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        commit(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def commit(temporary: Path, path: Path) -> None:
    """Syncs a file or folder and renames it to `path` on the same disk.

    After a power failure, `path` holds either all of the new content or the previous content,
    because the content reaches the disk before the name does.
    """
    is_folder = temporary.is_dir()
    for part in [*temporary.rglob("*"), temporary] if is_folder else [temporary]:
        _sync(part)
    if is_folder and path.exists():
        shutil.rmtree(path)
    os.replace(temporary, path)
    _sync(path.parent)


def write_json(path: Path, values: object) -> None:
    """Writes a small JSON file atomically."""
    with replacing(path) as temporary:
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_failure(error: OSError) -> str:
    """Returns a short reason why a write failed."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}; what is complete stays, make room and run the same again"
    return f"{os.strerror(error.errno)}{where}" if error.errno else str(error)


def remove_leftovers(*folders: Path) -> None:
    """Removes temporary files that killed writers left."""
    for folder in folders:
        for file in folder.glob(".*.tmp"):
            file.unlink(missing_ok=True)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yields a folder for unfinished files of a run, and cuts off writers of earlier runs.

    The caller must hold the lock. A folder is renamed before it is removed, because a rename is
    atomic: afterwards no worker of that run can open or rename a file in it.
    """
    for folder in parent.glob("run-*"):
        folder.rename(folder.with_name(f"ended-{uuid.uuid4().hex[:12]}"))
    for folder in parent.glob("ended-*"):
        shutil.rmtree(folder, ignore_errors=True)
    scratch = parent / f"run-{uuid.uuid4().hex[:12]}"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        ended = scratch.rename(scratch.with_name(f"ended-{uuid.uuid4().hex[:12]}"))
        shutil.rmtree(ended, ignore_errors=True)


@contextmanager
def locked(file: Path, what: str, *, patience_seconds: float = 0.0) -> Iterator[None]:
    """Holds a lock that the system releases when the process ends, even if it is killed.

    Raises:
        UserError: If another process still holds the lock after `patience_seconds`.
    """
    give_up_at = time.monotonic() + patience_seconds
    with open(file, "a+") as lock:
        while not _is_taken(lock):
            if time.monotonic() >= give_up_at:
                lock.seek(0)
                owner = lock.read().strip() or "another process"
                raise UserError(f"{what} is being written by {owner}; wait for it or end it")
            time.sleep(0.2)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


def _is_taken(lock: IO[str]) -> bool:
    """Tries to take a lock and returns whether it succeeded."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
