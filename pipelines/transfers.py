"""Files on their way between a disk and a bucket."""

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.filesystems import filesystem_of, list_files
from pipelines.storage import AnyPath, RemotePath

_ONE_REQUEST_BYTES = 64_000_000
"""Largest file that is kept in memory and written at once, in bytes."""
_MAX_COPY_BYTES = 5_000_000_000
"""Largest object that S3 copies in one request, in bytes."""
_CHUNK_BYTES = 8_000_000
_TEMPORARY = "xkd-upload-"
_KEPT_SECONDS = 3600.0


def upload(source: Path, target: RemotePath, via: RemotePath | None = None) -> Iterator[None]:
    """Writes a local file to a bucket, whole or not at all.

    A stream to a bucket has no way back: what was written appears when the stream is closed, also
    after a mistake. So a large file first goes to another key, which the store then copies.

    Args:
        source: The local file.
        target: Where it appears.
        via: The key of the unfinished file; by default small files need none, and that of others
            lies beside `target`.

    Yields:
        Once, before the file appears. The caller may raise here.
    """
    size = source.stat().st_size
    if (via is None and size <= _ONE_REQUEST_BYTES) or size == 0:
        data = source.read_bytes()
        yield
        target.write_bytes(data)
        return
    if size > _MAX_COPY_BYTES and target.uri.startswith("s3://"):
        yield
        _stream(source, target)
        return
    unfinished = via or target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        _stream(source, unfinished)
        yield
        unfinished.rename(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _stream(source: Path, target: RemotePath) -> None:
    filesystem, path = filesystem_of(target.uri)
    with (
        source.open("rb") as file,
        filesystem.open_output_stream(path, compression=None) as stream,
    ):
        shutil.copyfileobj(file, stream, _CHUNK_BYTES)
    if target.size() != source.stat().st_size:
        raise OSError(f"({target}) holds {target.size():,} bytes of {source.stat().st_size:,}")


@contextmanager
def folder_on_disk() -> Iterator[Path]:
    """Yields a folder in TMPDIR for files on their way to or from a bucket.

    Folders that killed processes left an hour ago are removed.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*-*"):
        pid = left.name.removeprefix(_TEMPORARY).partition("-")[0]
        with suppress(OSError):
            is_old = time.time() - left.stat().st_mtime > _KEPT_SECONDS
            if is_old and not Path("/proc", pid).exists():
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{_TEMPORARY}{os.getpid()}-") as folder:
        yield Path(folder)


@contextmanager
def on_disk(file: AnyPath) -> Iterator[Path]:
    """Yields a file or folder, or a copy of a remote one that is removed afterwards."""
    if isinstance(file, Path):
        yield file
        return
    with folder_on_disk() as folder:
        copy = folder / file.name
        if file.is_dir():
            for entry in list_files(str(file)):
                inner = copy / entry.uri.removeprefix(f"{file}/")
                inner.parent.mkdir(parents=True, exist_ok=True)
                _download(RemotePath(entry.uri), inner)
        else:
            _download(file, copy)
        yield copy


def _download(source: RemotePath, target: Path) -> None:
    with source.open() as stream, target.open("wb") as content:
        shutil.copyfileobj(stream, content, _CHUNK_BYTES)
