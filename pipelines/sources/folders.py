"""Listing of folders, local or in a bucket: every regular file below one is a source.

A file is a source unless its extension names another kind of file; such files are counted. An
unreadable file is also a source, so that it is reported among the rejects. This module opens no
files.
"""

import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from pipelines.filesystems import list_files
from pipelines.paths import is_uri
from pipelines.quantities import counted
from pipelines.sources.source import SPLITS, Source, SourceList, text_of

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
"""Extensions of files that are not media. Such files are counted as ignored."""


def list_folder(root: str, labels: Literal["auto", "folder", "none"]) -> SourceList:
    """Finds the sources below a folder, unsorted."""
    ignored: Counter[str] = Counter()
    files: list[tuple[Source, tuple[str, ...]]] = []
    for source, parts in _walk_remote(root) if is_uri(root) else _walk_local(root, ignored):
        name = source.path.rpartition("/")[2]
        suffix = os.path.splitext(name)[1].lower()
        if name.startswith("."):
            ignored["hidden"] += 1
        elif suffix in NOT_MEDIA_SUFFIXES:
            ignored[suffix] += 1
        else:
            files.append((source, parts))
    level, notes = split_level([parts for _, parts in files])
    names = {_folder_label(parts, level) for _, parts in files}
    use_names = labels == "folder" or (labels == "auto" and len(names - {None}) > 1)
    sources = [
        replace(
            source,
            label=_text(_folder_label(parts, level)) if use_names else None,
            split=_folder_split(parts, level),
        )
        for source, parts in files
    ]
    return SourceList(root, sources, dict(sorted(ignored.items())), notes)


def split_level(folders: Sequence[tuple[str, ...]]) -> tuple[int | None, list[str]]:
    """Finds the level of a tree whose folders name splits.

    Splits lie above the labels or below them, and on one level only:

        train/dog/a.mp4   level 0    dog/train/a.mp4   level -1    corpus/train/dog/a.mp4   level -2
        test/dog/b.mp4               dog/test/b.mp4                corpus/test/dog/b.mp4

    A level counts if each of its folders names a split. Elsewhere a folder named `test` is an
    ordinary folder, because `test` may be a class.

    Args:
        folders: The folders between the root and each file.

    Returns:
        0, -1, -2 or None, and notes on which folders were taken as splits.
    """
    inner = [parts for parts in folders if parts]
    for level in (0, -1, -2):
        if not inner or min(map(len, inner)) < -level:
            break
        names = Counter(parts[level] for parts in inner)
        if all(name.lower() in SPLITS for name in names):
            return level, _split_notes(names, num_outside=len(folders) - len(inner))
    found = sorted({part for parts in inner for part in parts if part.lower() in SPLITS})
    if not found:
        return None, []
    note = (
        f"folders named {', '.join(found)} are not taken as splits, because other folders lie "
        "beside them or they lie on several levels; use train/LABEL/ or LABEL/train/ throughout, "
        "or a list with a column split"
    )
    return None, [note]


def _split_notes(names: Counter[str], num_outside: int) -> list[str]:
    counts = ", ".join(
        f"{name} ({counted(count, 'file')})"
        if name == SPLITS[name.lower()]
        else f"{name} as {SPLITS[name.lower()]} ({counted(count, 'file')})"
        for name, count in sorted(names.items())
    )
    notes = [f"splits are taken from folders: {counts}"]
    if num_outside:
        files = counted(num_outside, "file")
        notes.append(f"{files} outside these folders without a split, used for training")
    return notes


def _text(name: str | None) -> str | None:
    return None if name is None else sys.intern(text_of(name))


def _folder_label(parts: tuple[str, ...], level: int | None) -> str | None:
    rest = parts[:-1] if level == -1 else parts[1:] if level == 0 else parts
    return rest[-1] if rest else None


def _folder_split(parts: tuple[str, ...], level: int | None) -> str | None:
    return SPLITS[parts[level].lower()] if parts and level is not None else None


def _walk_local(root: str, ignored: Counter[str]) -> Iterator[tuple[Source, tuple[str, ...]]]:
    for path, parts in walk_files(root, ignored):
        yield Source(path, text_of(path), None, None, None), parts


def walk_files(root: str, ignored: Counter[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Walks a tree and follows links, but enters each folder once.

    Yields each file's path and the folders between the root and the file. A folder that cannot be
    listed is yielded as a file, which is rejected later. A hidden folder is yielded as a file,
    which is ignored by its name. Pipes, sockets and devices are counted in `ignored`.
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
            else:
                ignored[_special(entry)] += 1
        waiting += reversed(inner)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Returns whether it is a regular file, or a broken link, which is rejected later."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def _special(entry: os.DirEntry[str]) -> str:
    """Returns the kind of a special file, following links."""
    mode = entry.stat().st_mode
    return "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"


def _walk_remote(root: str) -> Iterator[tuple[Source, tuple[str, ...]]]:
    prefix = root.rstrip("/") + "/"
    hidden = set()
    for entry in list_files(root):
        inner = entry.uri.removeprefix(prefix)
        parts = tuple(inner.split("/")[:-1])
        depth = next((i for i, part in enumerate(parts) if part.startswith(".")), None)
        if depth is not None:
            folder = prefix + "/".join(parts[: depth + 1])
            if folder not in hidden:  # yield it once, as a local walk does
                hidden.add(folder)
                yield Source(folder, text_of(folder), None, None, None), parts[:depth]
            continue
        size, modified = entry.byte_size, entry.modified
        yield Source(entry.uri, text_of(entry.uri), None, None, None, size, modified), parts
