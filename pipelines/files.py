"""Atomic writes of files and folders, and locks between processes, on a disk or in a bucket."""

import errno
import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa

from pipelines.errors import UserError
from pipelines.filesystems import is_web, store_failure
from pipelines.leases import check_leases, leased, now_text
from pipelines.redaction import one_line
from pipelines.storage import AnyPath, RemotePath, path_of, remove_tree
from pipelines.transfers import folder_on_disk, upload

_UPLOADS = 8
"""Files that are uploaded at a time."""
_ALIVE = "alive"
"""Marker in a scratch folder of a bucket while its run may commit."""


def temporary_name(path: Path) -> Path:
    """Returns a hidden path beside `path` to write to."""
    name = f".{path.name[:100]}.{uuid.uuid4().hex[:12]}.tmp"  # file names are limited to 255 bytes
    return path.with_name(name)


def is_temporary(name: str) -> bool:
    """Whether a file has the name of an unfinished one."""
    return name.startswith(".") and name.endswith(".tmp")


@contextmanager
def replacing(path: AnyPath, scratch: AnyPath | None = None, *, last: str = "") -> Iterator[Path]:
    """Writes a file or a folder atomically.

    The block writes to the temporary path that this yields, always on a disk. When the block ends,
    the content is synced and replaces `path`. When the block raises, the content is removed. In a
    bucket the files of a folder appear one by one, so one of them must tell readers that the folder
    is complete.

    Args:
        path: The file or folder.
        scratch: Folder of the run (`scratch_folder`), on the same disk; default: that of `path`.
        last: Name of the file in a folder that appears last in a bucket.

    Raises:
        OSError: If `path` cannot be written. Its previous content stays.
    """
    if isinstance(path, RemotePath):
        with folder_on_disk() as folder:
            temporary = folder / path.name
            yield temporary
            put(temporary, path, scratch, last)
        return
    assert scratch is None or isinstance(scratch, Path)
    temporary = temporary_name(path if scratch is None else scratch / path.name)
    try:
        yield temporary
        commit(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def put(source: Path, target: RemotePath, scratch: AnyPath | None = None, last: str = "") -> None:
    """Copies a local file or folder to a bucket, whole or not at all; see `replacing`.

    Raises:
        OSError: If it cannot be written, the run of `scratch` has ended, or another process has
            taken over (`leases`).
    """
    try:
        if not source.is_dir():
            _put_file(source, target, scratch)
            return
        files = [file.relative_to(source) for file in source.rglob("*") if file.is_file()]
        if last:  # of an earlier folder with this name
            (target / last).unlink(missing_ok=True)
        with ThreadPoolExecutor(_UPLOADS) as pool:
            for _ in pool.map(
                lambda name: _put_file(source / name, target / name.as_posix(), scratch),
                [name for name in files if str(name) != last],
            ):
                pass
        if last:
            _put_file(source / last, target / last, scratch)
    except pa.ArrowException as error:
        raise OSError(one_line(error)) from error


def _put_file(source: Path, target: RemotePath, scratch: AnyPath | None) -> None:
    assert scratch is None or isinstance(scratch, RemotePath)
    for _ in upload(source, target, None if scratch is None else scratch / target.name):
        check_leases(target)
        if scratch is not None and not (scratch / _ALIVE).exists():
            raise OSError(f"the run that writes to {target.parent} has ended")


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


def write_json(path: AnyPath, values: object) -> None:
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
    return f"{os.strerror(error.errno)}{where}" if error.errno else store_failure(error)


def remove_leftovers(*folders: AnyPath) -> None:
    """Removes temporary files that killed writers left."""
    for folder in folders:
        for file in folder.glob(".*.tmp"):
            file.unlink(missing_ok=True)


@contextmanager
def scratch_folder(parent: AnyPath) -> Iterator[AnyPath]:
    """Yields a folder for unfinished files of a run, and cuts off writers of earlier runs.

    The caller must hold the lock. On a disk, a folder is renamed before it is removed, because a
    rename is atomic: afterwards no worker of that run can open or rename a file in it. In a bucket
    a marker is removed, which workers look for before they commit.
    """
    if isinstance(parent, RemotePath):
        with _remote_scratch(parent) as remote:
            yield remote
        return
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
def _remote_scratch(parent: RemotePath) -> Iterator[RemotePath]:
    for folder in parent.glob("run-*"):
        _end_scratch(folder)
    scratch = parent / f"run-{uuid.uuid4().hex[:12]}"
    (scratch / _ALIVE).write_bytes(f"{os.getpid()} on {socket.gethostname()}\n".encode())
    try:
        yield scratch
    finally:
        _end_scratch(scratch)


def _end_scratch(folder: RemotePath) -> None:
    (folder / _ALIVE).unlink(missing_ok=True)
    remove_tree(folder)


@contextmanager
def locked(file: AnyPath, what: str, *, patience_seconds: float = 0.0) -> Iterator[None]:
    """Holds a lock that ends with the process, even if it is killed.

    On a disk the system releases it. In a bucket it is a lease (`leases`), and `file` the folder of
    its claims.

    Raises:
        UserError: If another process still holds the lock after `patience_seconds`.
    """
    if isinstance(file, RemotePath):
        with leased(file, what, patience_seconds=patience_seconds):
            yield
        return
    give_up_at = time.monotonic() + patience_seconds
    with open(file, "a+") as lock:
        while not _is_taken(lock):
            if time.monotonic() >= give_up_at:
                lock.seek(0)
                owner = lock.read().strip() or "another process"
                raise UserError(f"{what} is being written by {owner}; wait for it or end it")
            time.sleep(0.2)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {now_text()}\n")
        lock.flush()
        yield


def _is_taken(lock: IO[str]) -> bool:
    """Tries to take a lock and returns whether it succeeded."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_writable(location: str) -> None:
    """Makes sure that a folder is writable, or can be made; in a bucket by writing a file.

    Raises:
        UserError: If it cannot.
    """
    folder = path_of(location)
    if is_web(location):
        raise UserError(f"output ({location}) must be a folder or in a bucket, not on a web server")
    if isinstance(folder, RemotePath):
        _check_bucket(folder)
        return
    # Not Path.exists, which raises an error for what lies in a folder that may not be read.
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.isdir(folder):
        raise UserError(f"output ({location}) must be a folder, but {folder} is a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"output ({location}) is not writable")


def _check_bucket(folder: RemotePath) -> None:
    """Makes sure that files may be written, listed and deleted: a lease needs all three."""
    probe = folder / f".{uuid.uuid4().hex[:12]}.tmp"
    requests: dict[str, Callable[[], object]] = {
        "is not writable": lambda: probe.write_bytes(b"may be removed\n"),
        "cannot be listed": lambda: list((folder / probe.stem).iterdir()),
        "does not let files be deleted": lambda: probe.unlink(missing_ok=True),
    }
    for problem, request in requests.items():
        try:
            request()
        except OSError as error:
            raise UserError(f"output ({folder}) {problem}: {store_failure(error)}") from error
