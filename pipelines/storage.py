"""Paths of results: `pathlib.Path` on a disk, `RemotePath` in a bucket.

`path_of` gives either, and both have the methods that this package uses, so that code that reads
and writes results is the same for both. A bucket has no folders, renames or locks:

    on a disk                               in a bucket
    a file appears by rename                by one request, or by a copy that the store makes
    a folder appears by rename              file by file, the one that lists them last
    `flock` keeps other writers out         a lease does (`leases`)
    a folder of an ended run is renamed     the marker of that run is removed (`files`)
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipelines.errors import UserError
from pipelines.paths import is_uri
from pipelines.redaction import one_line

if TYPE_CHECKING:
    from pyarrow import fs as pafs


def _opened(uri: str) -> "tuple[pafs.FileSystem, str]":
    # The help of a job, which knows these paths, shows without loading pyarrow.
    from pipelines.filesystems import filesystem_of

    return filesystem_of(uri)


@contextmanager
def _store_errors() -> Iterator[None]:
    """Turns what clients raise beside OSError into one, as it would be on a disk."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        import pyarrow as pa

        if isinstance(error, pa.ArrowException):
            raise OSError(one_line(error)) from error
        raise


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
        return self._info().type.name != "NotFound"

    def is_file(self) -> bool:
        """Whether this is a file."""
        return self._info().type.name == "File"

    def is_dir(self) -> bool:
        """Whether this is a folder."""
        return self._info().type.name == "Directory"

    def size(self) -> int:
        """Size of the file, in bytes.

        Raises:
            FileNotFoundError: If there is none.
        """
        info = self._info()
        if info.type.name != "File":
            raise FileNotFoundError(2, "No such file", self.uri)
        return int(info.size)

    def modified(self) -> int:
        """When the store says that the file was written, in nanoseconds; 0 if it does not say.

        Raises:
            FileNotFoundError: If there is none.
        """
        info = self._info()
        if info.type.name == "NotFound":
            raise FileNotFoundError(2, "No such file", self.uri)
        return info.mtime_ns or 0

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a folder is there as soon as it holds a file."""

    @_store_errors()
    def open(self, mode: str = "rb") -> Any:
        """Opens the file for reading bytes at any position."""
        assert mode == "rb"
        filesystem, path = _opened(self.uri)
        return filesystem.open_input_file(path)

    def read_bytes(self) -> bytes:
        """Reads the file.

        Raises:
            FileNotFoundError: If there is none, or it is deleted meanwhile.
        """
        try:
            return self._read_bytes()
        except FileNotFoundError:
            raise
        except OSError:
            # Opening asks for the size, reading for the bytes. What is deleted or replaced in
            # between gives errors that depend on the store.
            return self._read_bytes()

    @_store_errors()
    def _read_bytes(self) -> bytes:
        with self.open() as file:
            return bytes(file.read())

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Reads the file as text."""
        return self.read_bytes().decode(encoding, errors)

    @_store_errors()
    def write_bytes(self, data: bytes) -> None:
        """Writes the file in one request, whole or not at all."""
        filesystem, path = _opened(self.uri)
        with filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(data)

    def iterdir(self) -> Iterator["RemotePath"]:
        """Yields what the folder holds; nothing if it does not exist."""
        names = self._names()
        for name in sorted(names - {self.name}):
            yield self / name
        if self.name in names and (self / self.name).exists():
            yield self / self.name

    @_store_errors()
    def _names(self) -> set[str]:
        filesystem, path = _opened(self.uri)
        from pyarrow.fs import FileSelector

        selector = FileSelector(path, allow_not_found=True)
        return {PurePosixPath(info.path).name for info in filesystem.get_file_info(selector)}

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Yields what matches a pattern of names and slashes."""
        first, _, rest = pattern.partition("/")
        for path in self.iterdir():
            if fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else (path,)

    @_store_errors()
    def unlink(self, *, missing_ok: bool = False) -> None:
        """Removes the file."""
        filesystem, path = _opened(self.uri)
        try:
            filesystem.delete_file(path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    @_store_errors()
    def rename(self, target: "RemotePath") -> "RemotePath":
        """Moves the file, replacing another one; the store copies it."""
        filesystem, path = _opened(self.uri)
        filesystem.move(path, _opened(target.uri)[1])
        return target

    @_store_errors()
    def _info(self) -> "pafs.FileInfo":
        filesystem, path = _opened(self.uri)
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


def ray_storage(location: str) -> "tuple[pafs.FileSystem | None, str]":
    """Returns the filesystem and path that Ray keeps its own files at; None for a disk."""
    return _opened(location) if is_uri(location) else (None, location)


def size_of(path: AnyPath) -> int:
    """Returns the size of a file, in bytes.

    Raises:
        OSError: If there is none.
    """
    return path.size() if isinstance(path, RemotePath) else path.stat().st_size


@_store_errors()
def remove_tree(folder: AnyPath) -> None:
    """Removes a folder and all that it holds, if it exists."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    filesystem, path = _opened(folder.uri)
    try:
        filesystem.delete_dir(path)
    except FileNotFoundError:
        return
