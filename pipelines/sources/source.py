"""A source (one file to decode, with its labels and split) and its fingerprint."""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from pipelines.errors import UserError
from pipelines.filesystems import is_web

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "heldout": "test",
}
"""Maps names in folders and lists to the canonical name of a split."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file to decode."""

    path: str
    """A path, or a URI."""
    uri: str
    """The path as valid UTF-8, for tables."""
    label: str | None
    """The only label. None if there is no label, or more than one."""
    split: str | None
    group: str | None
    """The group of the source. Sources of one group stay in one split."""
    byte_size: int | None = None
    """Size in bytes. None if not known yet, -1 if the file does not exist."""
    modified: int = 0
    """Modification time, in nanoseconds."""
    labels: tuple[str, ...] = ()
    """All labels, for a source that can have more than one."""
    start_seconds: float | None = None
    """Start of the listed segment, in seconds. None if the list gives no start."""
    end_seconds: float | None = None


@dataclass
class SourceList:
    """The sources of an input."""

    input: str
    sources: list[Source]
    ignored: dict[str, int] = field(default_factory=dict)
    """Counts of files that are not sources, by extension or as `hidden` (a hidden folder counts
    once), `not listed`, `of the name of another`, `pipe`, `socket` or `device`."""
    notes: list[str] = field(default_factory=list)
    """Notes for users on how splits and labels were read."""


def check_once(found: SourceList) -> None:
    """Checks that no path is listed twice. The sources must be sorted."""
    before = None
    for source in found.sources:
        if source.uri == before:
            raise UserError(f"list ({found.input}) repeats the path {source.uri}")
        before = source.uri


def suffix_of(location: str) -> str:
    """Returns the extension of a path or URI, in lowercase."""
    path = urlsplit(location).path if is_web(location) else location
    return PurePosixPath(path).suffix.lower()


def text_of(name: str) -> str:
    """Returns a name as valid UTF-8, with invalid bytes escaped."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode(errors="backslashreplace")
    return name


def unique_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Returns the distinct labels, sorted and interned to save memory."""
    return tuple(sorted({sys.intern(text_of(label.strip())) for label in labels} - {""}))


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The content hash of a source, or the reason for rejecting it unread."""

    source_hash: str | None
    reason: str | None = None
    message: str = ""
    byte_size: int | None = None
    """Size in bytes. None if unknown."""
    modified: int = 0
    version: str | None = None
    """The version tag of an object in a store."""
