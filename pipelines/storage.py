"""Paths of results: `pathlib.Path` on a disk, `RemotePath` in a bucket.

`path_of` gives either, and both have the methods that this package uses, so that code that reads
and writes results is the same for both. A bucket has no folders, renames or locks:

    on a disk                               in a bucket
    a file appears by rename                by one request, or by a copy that the store makes
    a folder appears by rename              file by file, the one that lists them last
    `flock` keeps other writers out         a lease does (`leases`)
    a folder of an ended run is renamed     the marker of that run is removed (`files`)
"""

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from pipelines.errors import UserError
from pipelines.filesystems import filesystem_of, is_web, store_failure
from pipelines.paths import is_uri

_ONE_REQUEST_BYTES = 64_000_000
"""Largest file that is kept in memory and written at once, in bytes."""
_MAX_COPY_BYTES = 5_000_000_000
"""Largest object that S3 copies in one request, in bytes."""
_CHUNK_BYTES = 8_000_000
_TEMPORARY = "xkd-upload-"
_KEPT_SECONDS = 3600.0


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or folder at a URI, with methods named as those of `pathlib.Path`."""

    uri: str
    """Without a slash at the end."""

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.uri}/{name}")

    @property
    def name(self) -> str:
        """The last part; empty for a bucket itself."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """The suffix of the last part, with its dot."""
        return self._pure.suffix

    @property
    def parent(self) -> "RemotePath":
        """The folder that holds this; a bucket is its own parent."""
        return RemotePath(self.uri.rpartition("/")[0]) if self.name else self

    @property
    def parents(self) -> tuple["RemotePath", ...]:
        """The folders around this, the nearest first."""
        found, here = [], self
        while here.name:
            here = here.parent
            found.append(here)
        return tuple(found)

    @property
    def _pure(self) -> PurePosixPath:
        rest = self.uri.partition("://")[2].partition("/")[2]
        return PurePosixPath(rest)

    def with_name(self, name: str) -> "RemotePath":
        """A file beside this."""
        return self.parent / name

    def absolute(self) -> "RemotePath":
        """Itself."""
        return self

    resolve = absolute

    def exists(self) -> bool:
        """Whether there is a file here, or a folder that is not empty."""
        return self._info().type != pafs.FileType.NotFound

    def is_file(self) -> bool:
        """Whether this is a file."""
        return self._info().type == pafs.FileType.File

    def is_dir(self) -> bool:
        """Whether this is a folder."""
        return self._info().type == pafs.FileType.Directory

    def size(self) -> int:
        """Size of the file, in bytes.

        Raises:
            FileNotFoundError: If there is none.
        """
        info = self._info()
        if info.type != pafs.FileType.File:
            raise FileNotFoundError(2, "No such file", self.uri)
        return int(info.size)

    def modified(self) -> int:
        """When the store says that the file was written, in nanoseconds; 0 if it does not say.

        Raises:
            FileNotFoundError: If there is none.
        """
        info = self._info()
        if info.type == pafs.FileType.NotFound:
            raise FileNotFoundError(2, "No such file", self.uri)
        return info.mtime_ns or 0

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a folder is there as soon as it holds a file."""

    def open(self, mode: str = "rb") -> Any:
        """Opens the file for reading bytes at any position."""
        assert mode == "rb"
        filesystem, path = filesystem_of(self.uri)
        return filesystem.open_input_file(path)

    def read_bytes(self) -> bytes:
        """Reads the file."""
        with self.open() as file:
            return bytes(file.read())

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Reads the file as text."""
        return self.read_bytes().decode(encoding, errors)

    def write_bytes(self, data: bytes) -> None:
        """Writes the file in one request, whole or not at all."""
        filesystem, path = filesystem_of(self.uri)
        with filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(data)

    def iterdir(self) -> Iterator["RemotePath"]:
        """Yields what the folder holds; nothing if it does not exist."""
        filesystem, path = filesystem_of(self.uri)
        selector = pafs.FileSelector(path, allow_not_found=True)
        names = {PurePosixPath(info.path).name for info in filesystem.get_file_info(selector)}
        for name in sorted(names - {self.name}):
            yield self / name
        if self.name in names and (self / self.name).exists():
            yield self / self.name

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Yields what matches a pattern of names and slashes."""
        first, _, rest = pattern.partition("/")
        for path in self.iterdir():
            if fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else (path,)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Removes the file."""
        filesystem, path = filesystem_of(self.uri)
        try:
            filesystem.delete_file(path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: "RemotePath") -> "RemotePath":
        """Moves the file, replacing another one; the store copies it."""
        filesystem, path = filesystem_of(self.uri)
        filesystem.move(path, filesystem_of(target.uri)[1])
        return target

    def _info(self) -> pafs.FileInfo:
        filesystem, path = filesystem_of(self.uri)
        return filesystem.get_file_info(path)


AnyPath = Path | RemotePath


def path_of(location: str | AnyPath) -> AnyPath:
    """Returns the path of a location, a path or a URI."""
    if isinstance(location, RemotePath):
        return location
    text = str(location)
    return RemotePath(text.rstrip("/")) if is_uri(text) else Path(text)


def sorted_files(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """Returns what a folder holds of a pattern, sorted."""
    found: Iterable[AnyPath] = folder.glob(pattern)
    return sorted(found, key=str)


def ray_storage(location: str) -> tuple[pafs.FileSystem | None, str]:
    """Returns the filesystem and path that Ray keeps its own files at; None for a disk."""
    return filesystem_of(location) if is_uri(location) else (None, location)


def size_of(path: AnyPath) -> int:
    """Returns the size of a file, in bytes.

    Raises:
        OSError: If there is none.
    """
    return path.size() if isinstance(path, RemotePath) else path.stat().st_size


def remove_tree(folder: AnyPath) -> None:
    """Removes a folder and all that it holds, if it exists."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    filesystem, path = filesystem_of(folder.uri)
    try:
        filesystem.delete_dir(path)
    except FileNotFoundError:
        return


def check_writable(location: str) -> None:
    """Makes sure that a folder is writable, or can be made; in a bucket by writing a file.

    Raises:
        UserError: If it cannot.
    """
    folder = path_of(location)
    if is_web(location):
        raise UserError(f"output ({location}) must be a folder or in a bucket, not on a web server")
    if isinstance(folder, RemotePath):
        probe = folder / f".{uuid.uuid4().hex[:12]}.tmp"
        try:
            probe.write_bytes(b"may be removed\n")
            probe.unlink(missing_ok=True)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"output ({location}) is not writable: {store_failure(error)}"
            ) from error
        return
    # Not Path.exists, which raises an error for what lies in a folder that may not be read.
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.isdir(folder):
        raise UserError(f"output ({location}) must be a folder, but {folder} is a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"output ({location}) is not writable")


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
    """Yields a file, or a copy of a remote one that is removed afterwards."""
    if isinstance(file, Path):
        yield file
        return
    with folder_on_disk() as folder:
        copy = folder / file.name
        with file.open() as stream, copy.open("wb") as content:
            shutil.copyfileobj(stream, content, _CHUNK_BYTES)
        yield copy
