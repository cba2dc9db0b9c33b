"""Files that are written whole or not at all, and locks between processes."""

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
    """Returns a hidden name beside `path`, under which it is written."""
    name = f".{path.name[:100]}.{uuid.uuid4().hex[:12]}.tmp"  # a file name has 255 bytes at most
    return path.with_name(name)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Writes a file or a folder whole or not at all.

    The block writes to the temporary path that it is given. When the block ends, the bytes are
    synced and take the name `path`, in place of what had it; when it raises, they are removed.

    Raises:
        OSError: If `path` cannot be written; what had its name stays.
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
    """Gives a file or folder on the same disk its name once its bytes are safe.

    After a power cut, `path` names the whole new content or what it named before: a name is never
    on disk before the bytes that it stands for.
    """
    is_folder = temporary.is_dir()
    for part in [*temporary.rglob("*"), temporary] if is_folder else [temporary]:
        _sync(part)
    if is_folder and path.exists():
        shutil.rmtree(path)
    os.replace(temporary, path)
    _sync(path.parent)


def write_json(path: Path, values: object) -> None:
    """Writes a small JSON file whole or not at all."""
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
    """Says in a few words why the system refused to write."""
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{place}; what is complete stays, make room and run the same again"
    return f"{os.strerror(error.errno)}{place}" if error.errno else str(error)


def remove_leftovers(*folders: Path) -> None:
    """Removes what killed writers left."""
    for folder in folders:
        for file in folder.glob(".*.tmp"):
            file.unlink(missing_ok=True)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Gives a folder for what a run has not completed, and ends what earlier runs still write.

    To be called under the lock. A folder is renamed before it is removed, because renaming is one
    step: from then on no worker of that run can open or rename a file in it.
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
    """Holds a lock that the system releases when the process ends, however it ends.

    Raises:
        UserError: If another process holds it, and still does when the patience is over.
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
    """Takes a lock if it is free; says whether it did."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
