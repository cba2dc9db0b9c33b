"""The media that a job is given: a folder, or a list, becomes sources with labels and splits.

In a folder every regular file is a source, whatever its name ends with, unless the ending says
that it is something else; those are counted. What cannot be read is a source too: it ends in the
rejects, so that nothing disappears silently. Nothing is opened here, and no file is asked for its
size: a list of a million files costs what it takes to read the list.
"""

import csv
import json
import math
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import UserError
from pipelines.filesystems import is_folder, is_web, list_files, opened
from pipelines.paths import is_uri
from pipelines.redaction import one_line

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
LIST_COLUMNS = ("path", "label", "labels", "split", "group", "start", "end")
LABEL_SEPARATOR = "|"
"""Between the labels of a source in a text list."""
_LIST_ROWS = 65_536
NOT_MEDIA_SUFFIXES = frozenset(
    [
        ".csv",
        ".tsv",
        ".txt",
        ".md",
        ".rst",
        ".json",
        ".jsonl",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
        ".cfg",
        ".xml",
        ".html",
        ".htm",
        ".css",
        ".js",
        ".py",
        ".ipynb",
        ".sh",
        ".parquet",
        ".feather",
        ".arrow",
        ".npy",
        ".npz",
        ".pkl",
        ".pt",
        ".pth",
        ".safetensors",
        ".h5",
        ".mat",
        ".log",
        ".lock",
        ".jpg",
        ".jpeg",
        ".png",
        ".bmp",
        ".tif",
        ".tiff",
        ".webp",
        ".svg",
        ".ico",
        ".heic",
        ".pdf",
        ".doc",
        ".docx",
        ".xls",
        ".xlsx",
        ".ppt",
        ".pptx",
        ".srt",
        ".vtt",
        ".ass",
        ".sub",
        ".nfo",
        ".m3u",
        ".m3u8",
        ".mpd",
        ".torrent",
        ".zip",
        ".tar",
        ".gz",
        ".tgz",
        ".bz2",
        ".xz",
        ".7z",
        ".rar",
        ".zst",
        ".db",
        ".sqlite",
        ".sqlite3",
        ".md5",
        ".sha256",
        ".tmp",
        ".part",
        ".bak",
    ]
)
SPLITS = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "heldout": "test",
}
"""Folder names and list values that name a split, and how it is called here."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file to decode."""

    path: str
    """A path, or a URI."""
    uri: str
    """The path as text that every table can hold."""
    label: str | None
    """None if there is none, or more than one."""
    split: str | None
    group: str | None
    """Sources of one group stay in one split."""
    byte_size: int | None = None
    """None if nobody has looked yet, -1 if there is no such file."""
    modified: int = 0
    """Nanoseconds."""
    labels: tuple[str, ...] = ()
    """All labels, of a source that can have more than one."""
    start_seconds: float | None = None
    """The stretch that the list is about, if it is not the whole file."""
    end_seconds: float | None = None


@dataclass
class SourceList:
    """What an input holds."""

    input: str
    sources: list[Source]
    ignored: dict[str, int] = field(default_factory=dict)
    """Files that are no source, counted by ending, as `hidden` (a hidden folder is one), as
    `not listed`, or as `of the name of another`."""


def list_sources(input_path: str, labels: Literal["auto", "folder", "none"]) -> SourceList:
    """Finds the sources of a folder or of a list, sorted by path.

    Args:
        input_path: A path, or a URI.
        labels: Whether folders name labels.

    Raises:
        UserError: If the input is not there, is neither, or holds no source.
    """
    place = input_path if is_uri(input_path) else os.path.abspath(input_path)
    found = _list(place, labels, input_path)
    if not found.sources:
        ignored = ", ".join(f"{count} {suffix}" for suffix, count in found.ignored.items())
        what = f"only {ignored}" if ignored else "it is empty"
        raise UserError(f"input ({input_path}) must hold media, but {what}")
    found.sources.sort(key=lambda source: source.uri)
    check_once(found)
    return found


def _list(place: str, labels: Literal["auto", "folder", "none"], given: str) -> SourceList:
    is_list = _suffix(place) in LIST_SUFFIXES
    if is_web(place):
        if not is_list:
            raise UserError(
                f"input ({given}) must be a list that ends with {', '.join(LIST_SUFFIXES)}: "
                "a web server has no folders to go through"
            )
    elif is_folder(place):
        return _list_folder(place, labels)
    elif not is_uri(place) and not os.path.exists(place):
        raise UserError(f"input ({given}) does not exist")
    elif not is_list:
        raise UserError(
            f"input ({given}) must be a folder or a list that ends with {', '.join(LIST_SUFFIXES)}"
        )
    with _local_list(place) as file:
        # What a web address asks for may hold a slash, and is nothing that a path is relative to.
        whole = place.partition("?")[0] if is_web(place) else place
        base = whole.rpartition("/")[0]
        return SourceList(place, list(_read_list(file, base, place)))


def check_once(found: SourceList) -> None:
    """Makes sure that no path is listed twice; the sources are sorted."""
    before = None
    for source in found.sources:
        if source.uri == before:
            raise UserError(f"list ({found.input}) repeats the path {source.uri}")
        before = source.uri


def _suffix(place: str) -> str:
    path = urlsplit(place).path if is_web(place) else place
    return PurePosixPath(path).suffix.lower()


def _list_folder(root: str, labels: Literal["auto", "folder", "none"]) -> SourceList:
    ignored: Counter[str] = Counter()
    files: list[tuple[Source, str | None]] = []
    for source, parts in _walk_remote(root) if is_uri(root) else _walk_local(root):
        name = source.path.rpartition("/")[2]
        suffix = os.path.splitext(name)[1].lower()
        if name.startswith("."):
            ignored["hidden"] += 1
        elif suffix in NOT_MEDIA_SUFFIXES:
            ignored[suffix] += 1
        else:
            files.append((source, _folder_label(parts)))
    names = {name for _, name in files}
    use_names = labels == "folder" or (labels == "auto" and len(names - {None}) > 1)
    sources = [_labelled(source, name) if name and use_names else source for source, name in files]
    return SourceList(root, sources, dict(sorted(ignored.items())))


def _labelled(source: Source, name: str) -> Source:
    label = sys.intern(text_of(name))
    return Source(
        source.path, source.uri, label, source.split, None, source.byte_size, source.modified
    )


def _folder_label(parts: tuple[str, ...]) -> str | None:
    if not parts or parts[-1].lower() in SPLITS:
        return None
    return parts[-1]


def _folder_split(parts: tuple[str, ...]) -> str | None:
    return next((SPLITS[part.lower()] for part in parts if part.lower() in SPLITS), None)


def _walk_local(root: str) -> Iterator[tuple[Source, tuple[str, ...]]]:
    for path, parts in walk_files(root):
        yield Source(path, text_of(path), None, _folder_split(parts), None), parts


def walk_files(root: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Goes through a tree and through links in it, but into each folder once.

    Gives each file's path and the folders between the root and it. A folder that cannot be listed
    comes as if it were a file: it will be rejected as one. So does a hidden one, whose name says
    that it is none.
    """
    visited = set()
    waiting: list[tuple[str, tuple[str, ...]]] = [(root, ())]
    while waiting:
        folder, parts = waiting.pop()
        real = os.path.realpath(folder)
        if real in visited:
            continue
        visited.add(real)
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            yield folder, parts
            continue
        inner = []
        for entry in found:
            if _is_folder(entry) and not entry.name.startswith("."):
                inner.append((entry.path, (*parts, entry.name)))
            elif _is_file(entry) or _is_folder(entry):
                yield entry.path, parts
        waiting += reversed(inner)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file, or a link to nothing, which will be rejected."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def _walk_remote(root: str) -> Iterator[tuple[Source, tuple[str, ...]]]:
    prefix = root.rstrip("/") + "/"
    hidden = set()
    for entry in list_files(root):
        inner = entry.uri.removeprefix(prefix)
        parts = tuple(inner.split("/")[:-1])
        depth = next((i for i, part in enumerate(parts) if part.startswith(".")), None)
        if depth is not None:
            folder = prefix + "/".join(parts[: depth + 1])
            if folder not in hidden:  # once, as in a local walk
                hidden.add(folder)
                yield Source(folder, text_of(folder), None, None, None), parts[:depth]
            continue
        split = _folder_split(parts)
        size, modified = entry.byte_size, entry.modified
        yield Source(entry.uri, text_of(entry.uri), None, split, None, size, modified), parts


def text_of(name: str) -> str:
    """Gives a name as text; bytes that are none are spelled out."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode(errors="backslashreplace")
    return name


def _read_list(file: str, base: str, place: str) -> Iterator[Source]:
    split_of: dict[str, str] = {}
    is_typed = _suffix(place) in (".csv", ".tsv")
    for number, row in enumerate(_read_rows(file, place), start=1):
        name = row.get("path")
        if name is None or name == "":
            raise UserError(f"list ({place}): row {number} has no path")
        try:
            source = _listed(row, _joined(base, _path(name, base, is_typed=is_typed)))
            _check_group(source, split_of)
            yield source
        except ValueError as error:
            raise UserError(f"list ({place}): row {number}: {error}") from error


def _listed(row: Mapping[str, Any], path: str) -> Source:
    split = _cell(row, "split")
    start, end = _seconds(row, "start"), _seconds(row, "end")
    if start is not None and end is not None and start >= end:
        raise ValueError(f"start ({start:g}) must be less than end ({end:g})")
    labels = _labels(row.get("labels"))
    label = _cell(row, "label") or (labels[0] if len(labels) == 1 else None)
    return Source(
        path,
        text_of(path),
        label,
        SPLITS.get(split.lower(), split) if split else None,
        _cell(row, "group"),
        labels=labels,
        start_seconds=start,
        end_seconds=end,
    )


def _check_group(source: Source, split_of: dict[str, str]) -> None:
    if source.group is None or source.split is None:
        return
    split = split_of.setdefault(source.group, source.split)
    if split != source.split:
        raise ValueError(
            f"group ({source.group}) must be in one split, but is in {split} and {source.split}"
        )


def _path(value: Any, base: str, *, is_typed: bool) -> str:
    """A path as it is written.

    In a list that may have been typed, blanks around it are none of its own, unless there is a file
    with them.
    """
    if not isinstance(value, str | bytes):
        raise ValueError(f"path ({value}) must be text")
    text = os.fsdecode(value)
    if is_typed and text != text.strip() and not os.path.lexists(os.path.join(base, text)):
        text = text.strip()
        if not text:
            raise ValueError("path is blank")
    return text


def _joined(base: str, text: str) -> str:
    """Where a path of a list leads, which may be relative to the list."""
    if text.startswith("file://"):
        return os.path.abspath(unquote(text.removeprefix("file://")))
    if is_uri(text):
        return text
    if is_uri(base) and not text.startswith("/"):
        return f"{base}/{text.removeprefix('./')}"
    return os.path.abspath(os.path.join(base, text))


def _labels(value: Any) -> tuple[str, ...]:
    if _is_nothing(value):
        return ()
    parts = value.split(LABEL_SEPARATOR) if isinstance(value, str) else value
    if not isinstance(parts, list):
        raise ValueError(f"labels ({value}) must be a list, or text with | between the labels")
    return unique_labels(_text(part, "labels") for part in parts if not _is_nothing(part))


def unique_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Each label once, sorted, as text that is stored once for all sources."""
    return tuple(sorted({sys.intern(text_of(label.strip())) for label in labels} - {""}))


def _seconds(row: Mapping[str, Any], column: str) -> float | None:
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{column} ({value}) must be a number of seconds, 0 or more")
    return seconds


def _cell(row: Mapping[str, Any], column: str) -> str | None:
    value = row.get(column)
    text = "" if _is_nothing(value) else _text(value, column).strip()
    return sys.intern(text_of(text)) or None


def _is_nothing(value: Any) -> bool:
    """Whether a cell is empty, which tables of numbers write as NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Any, column: str) -> str:
    if isinstance(value, dict | list):
        raise ValueError(f"{column} ({value}) must be text")
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


@contextmanager
def _local_list(place: str) -> Iterator[str]:
    """A list as a local file; a remote one is copied for as long as it is read."""
    if not is_uri(place):
        yield place
        return
    with tempfile.NamedTemporaryFile(prefix="xkd-list-", suffix=_suffix(place)) as copy:
        try:
            with opened(place) as remote:
                shutil.copyfileobj(remote.stream, copy)
        except UserError:
            raise
        except Exception as error:  # each client library has its own
            raise UserError(f"input ({place}) cannot be read: {one_line(error)}") from error
        copy.flush()
        yield copy.name


def _read_rows(file: str, place: str) -> Iterator[Mapping[str, Any]]:
    """Gives the rows with the columns that mean something here, one after the other.

    Raises:
        UserError: If the list cannot be read or has no column `path`.
    """
    readers = {".parquet": _parquet_rows, ".jsonl": _json_rows}
    try:
        yield from readers.get(_suffix(place), _text_rows)(file)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"list ({place}) cannot be read: {one_line(error)}") from error
    except KeyError as error:
        raise UserError(f"list ({place}) must have a column path, but has {error.args[0]}") from (
            error
        )


def _parquet_rows(file: str) -> Iterator[Mapping[str, Any]]:
    with pq.ParquetFile(file) as table:
        names = table.schema_arrow.names
        columns = [name for name in names if name in LIST_COLUMNS]
        _check_columns(names)
        for batch in table.iter_batches(_LIST_ROWS, columns=columns):
            yield from batch.to_pylist()


def _json_rows(file: str) -> Iterator[Mapping[str, Any]]:
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for line in lines:
            if line.strip():
                row = json.loads(line, object_pairs_hook=_json_object)
                if not isinstance(row, dict):
                    raise ValueError(f"each line must be an object, but one is {line.strip()[:60]}")
                _check_columns(row)
                yield row


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_columns_once([name for name, _ in pairs])
    return dict(pairs)


def _text_rows(file: str) -> Iterator[Mapping[str, Any]]:
    delimiter = "\t" if file.lower().endswith(".tsv") else ","
    with open(file, "rb") as start:
        if start.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError("it is UTF-16, but must be UTF-8")
    # Paths may be bytes that are no text; they come back from the system as they are here.
    with open(file, newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        reader = csv.reader(lines, delimiter=delimiter)
        names = next(reader, [])
        _check_columns(names)
        columns = [(i, name) for i, name in enumerate(names) if name in LIST_COLUMNS]
        for cells in reader:
            if cells:
                yield {name: cells[i] for i, name in columns if i < len(cells)}


def _check_columns(names: Iterable[str]) -> None:
    names = list(names)
    if "path" not in names:
        raise KeyError(", ".join(names))
    _check_columns_once(names)


def _check_columns_once(names: list[str]) -> None:
    repeated = [name for name in LIST_COLUMNS if names.count(name) > 1]
    if repeated:
        raise ValueError(f"it has the column {repeated[0]} more than once")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the bytes of a source hash to, or why it is rejected unread."""

    source_hash: str | None
    reason: str | None = None
    message: str = ""
    byte_size: int | None = None
    """None if nothing is known about it."""
    modified: int = 0
    version: str | None = None
    """The tag of an object in a store."""
