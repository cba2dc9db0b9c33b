"""A source: one file to decode, with its labels and its split, and what its bytes hash to."""

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
"""Names of folders and values of lists that stand for a split, and what the split is called."""


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
    """Files that are not sources, counted by extension, as `hidden` (a hidden folder counts once),
    as `not listed`, as `of the name of another`, or as `pipe`, `socket` or
    `device`."""
    notes: list[str] = field(default_factory=list)
    """How splits and labels were read, in sentences for people."""


def check_once(found: SourceList) -> None:
    """Makes sure that no path is listed twice; the sources are sorted."""
    before = None
    for source in found.sources:
        if source.uri == before:
            raise UserError(f"list ({found.input}) repeats the path {source.uri}")
        before = source.uri


def suffix_of(place: str) -> str:
    """Returns the ending of a path or URI, in lower case."""
    path = urlsplit(place).path if is_web(place) else place
    return PurePosixPath(path).suffix.lower()


def text_of(name: str) -> str:
    """Gives a name as text; bytes that are none are spelled out."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode(errors="backslashreplace")
    return name


def unique_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Each label once, sorted, as text that is stored once for all sources."""
    return tuple(sorted({sys.intern(text_of(label.strip())) for label in labels} - {""}))


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
