"""The media that a job is given: a folder, or a list, becomes sources with labels and splits.

In a folder every regular file is a source, whatever its name ends with, unless the ending says
that it is something else; those are counted. What cannot be read is a source too: it ends in the
rejects, so that nothing disappears silently.
"""

import csv
import logging
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import UserError

logger = logging.getLogger(__name__)

LIST_SUFFIXES = (".csv", ".tsv", ".parquet")
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


@dataclass(frozen=True)
class Source:
    """One file to decode."""

    path: str
    uri: str
    """The path as text that every table can hold."""
    label: str | None
    split: str | None
    group: str | None
    """Sources of one group stay in one split."""
    byte_size: int
    """-1 if there is no such file."""
    modified: int
    """Nanoseconds."""


@dataclass
class SourceList:
    """What an input holds."""

    input: str
    sources: list[Source]
    ignored: dict[str, int] = field(default_factory=dict)
    """Files that are no media, counted by ending."""


def list_sources(input_path: str, labels: Literal["auto", "folder", "none"]) -> SourceList:
    """Finds the sources of a folder or of a list, sorted by path.

    Raises:
        UserError: If the input is not there, is neither, or holds no source.
    """
    path = Path(os.path.abspath(input_path))
    if path.is_dir():
        found = _list_folder(path, labels)
    elif path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        found = SourceList(str(path), _read_list(path))
    elif path.exists():
        raise UserError(
            f"input ({input_path}) must be a folder or a list that ends with "
            f"{', '.join(LIST_SUFFIXES)}"
        )
    else:
        raise UserError(f"input ({input_path}) does not exist")
    if not found.sources:
        ignored = ", ".join(f"{count} {suffix}" for suffix, count in found.ignored.items())
        what = f"only {ignored}" if ignored else "it is empty"
        raise UserError(f"input ({input_path}) must hold media, but {what}")
    found.sources.sort(key=lambda source: source.uri)
    return found


def _list_folder(root: Path, labels: Literal["auto", "folder", "none"]) -> SourceList:
    ignored: Counter[str] = Counter()
    files: list[tuple[str, tuple[str, ...]]] = []
    for folder, name in _walk(str(root)):
        suffix = os.path.splitext(name)[1].lower()
        if name.startswith("."):
            ignored["hidden"] += 1
        elif suffix in NOT_MEDIA_SUFFIXES:
            ignored[suffix] += 1
        else:
            parts = Path(os.path.relpath(folder, root)).parts
            files.append((os.path.join(folder, name), parts))
    names = [_folder_label(parts) for _, parts in files]
    use_names = labels == "folder" or (labels == "auto" and len(set(names) - {None}) > 1)
    sources = [
        _source(
            path,
            label=_text(name) if name and use_names else None,
            split=next((SPLITS[part.lower()] for part in parts if part.lower() in SPLITS), None),
            group=None,
        )
        for (path, parts), name in zip(files, names, strict=True)
    ]
    return SourceList(
        str(root),
        [source for source in sources if source is not None],
        dict(sorted(ignored.items())),
    )


def _walk(root: str) -> Iterator[tuple[str, str]]:
    """Goes through a tree and through links in it, but into each folder once."""

    def unreadable(error: OSError) -> None:
        logger.warning("cannot list %s: %s", error.filename, error.strerror)

    visited = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            yield folder, name


def _folder_label(parts: tuple[str, ...]) -> str | None:
    if not parts or parts[-1].lower() in SPLITS:
        return None
    return parts[-1]


def _source(path: str, *, label: str | None, split: str | None, group: str | None) -> Source | None:
    """Describes a file; None if it is there but no regular file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return Source(path, _text(path), label, split, group, -1, 0)
    if not stat.S_ISREG(status.st_mode):
        return None
    return Source(path, _text(path), label, split, group, status.st_size, status.st_mtime_ns)


def _text(name: str) -> str:
    """Gives the name as text; bytes that are none are spelled out."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _read_list(path: Path) -> list[Source]:
    rows = _read_rows(path)
    sources: dict[str, Source] = {}
    for number, row in enumerate(rows, start=1):
        name = _cell(row, "path")
        if name is None:
            raise UserError(f"list ({path}): row {number} has no path")
        place = os.path.abspath(os.path.join(path.parent, name))
        if place in sources:
            raise UserError(f"list ({path}): row {number} repeats the path {name}")
        split = _cell(row, "split")
        source = _source(
            place,
            label=_cell(row, "label"),
            split=SPLITS.get(split.lower(), split) if split else None,
            group=_cell(row, "group"),
        )
        if source is None:
            raise UserError(f"list ({path}): row {number}: {name} must be a file")
        sources[place] = source
    return list(sources.values())


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix.lower() == ".parquet":
            columns = [
                name
                for name in pq.read_schema(path).names
                if name in ("path", "label", "split", "group")
            ]
            rows = pq.read_table(path, columns=columns).to_pylist()
        else:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            with open(path, newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, delimiter=delimiter)
                columns = list(reader.fieldnames or ())
                rows = list(reader)
    except (OSError, ValueError, csv.Error, pa.ArrowInvalid) as error:
        raise UserError(f"list ({path}) cannot be read: {error}") from error
    if "path" not in columns:
        raise UserError(f"list ({path}) must have a column path, but has {', '.join(columns)}")
    return rows


def _cell(row: dict[str, Any], column: str) -> str | None:
    value = row.get(column)
    text = "" if value is None else str(value).strip()
    return text or None
