"""Folders, here or in a bucket: every regular file below one is a source.

A file is a source whatever its name ends with, unless the ending says that it is something else;
those are counted. A file that cannot be read is a source too: it ends in the rejects, so that
nothing disappears silently. Nothing is opened here.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from pipelines.filesystems import list_files
from pipelines.paths import is_uri
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
"""Endings of files that are not media; such files are counted as ignored."""


def list_folder(root: str, labels: Literal["auto", "folder", "none"]) -> SourceList:
    """Finds the sources below a folder, unsorted."""
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
