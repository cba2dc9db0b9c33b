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


def temporary_name(place: Path) -> Path:
    """A name beside a file under which it is written."""
    return place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}.tmp")


def write_json(place: Path, values: object) -> None:
    """Writes a small file atomically."""
    temporary = temporary_name(place)
    try:
        with open(temporary, "w") as file:
            file.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())  # as of a shard: no name without what it names
        os.replace(temporary, place)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


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
