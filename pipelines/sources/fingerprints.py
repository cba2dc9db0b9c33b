"""Content hashes of sources, computed on Ray Data and cached between runs.

Threads of the driver read the size and time of local files. Files that are empty, too large or
unchanged since an earlier run are not read. Ray workers read the rest, or the driver if it is
little. For a remote object larger than `limits.max_hashed_remote_bytes`, the store's version tag
replaces the hash of its bytes.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from pipelines.config.base import LimitsSettings
from pipelines.dataset.schema import STATE_FOLDER
from pipelines.files import replacing
from pipelines.filesystems import RemoteFile, opened
from pipelines.paths import is_uri
from pipelines.progress import OnProgress
from pipelines.quantities import counted
from pipelines.redaction import one_line
from pipelines.sources.kept_copy import KeptCopy
from pipelines.sources.source import Fingerprint, Source, SourceList
from pipelines.sources.spool import BrokenOffError, Spool, chunks, version_hash
from pipelines.storage import AnyPath

logger = logging.getLogger(__name__)

_UNKNOWN = "unknown"
"""Reason of a source that must be read."""
CACHE_FILE = "fingerprints.parquet"
CACHE_SECONDS = 60.0
"""Interval between cache writes, from which a killed run resumes, in seconds."""
SOURCES_PER_TASK = 64
SMALL_BYTES = 100_000_000
"""Size of local files, of one task, that the driver reads: a graph takes a second to start."""
MAX_TASKS = 4096
STAT_THREADS = 16
STAT_BATCH = 512
_CACHE = pa.schema(
    [
        ("source", pa.string()),
        ("byte_size", pa.int64()),
        ("modified", pa.int64()),
        ("source_hash", pa.string()),
        ("version", pa.string()),
    ]
)


def fingerprint_sources(
    listed: SourceList, output: AnyPath, limits: LimitsSettings, on_progress: OnProgress
) -> list[Fingerprint]:
    """Hashes the sources that no earlier run hashed, and rejects some by size alone."""
    cached = _read_cache(output)
    found = [
        _unread(size, modified, cached.get(source.uri), limits)
        for source, (size, modified) in zip(listed.sources, _looked_at(listed.sources), strict=True)
    ]
    todo = [number for number, fingerprint in enumerate(found) if fingerprint.reason == _UNKNOWN]
    written = time.monotonic()
    for count, (number, fingerprint) in enumerate(
        _hash_all(listed.sources, found, todo, cached, limits), start=1
    ):
        found[number] = fingerprint
        on_progress(0, len(found), f"read {count:,} of {counted(len(todo), 'file')}")
        if time.monotonic() - written > CACHE_SECONDS:
            _write_cache(output, listed.sources, found, cached)
            written = time.monotonic()
    assert not any(fingerprint.reason == _UNKNOWN for fingerprint in found)
    if todo:
        _write_cache(output, listed.sources, found, {})
    return found


def _looked_at(sources: Sequence[Source]) -> Iterator[tuple[int | None, int]]:
    """Yields the size and modification time of each source, as far as known without opening it."""
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        parts = range(0, len(sources), STAT_BATCH)
        yield from chain.from_iterable(
            pool.map(lambda first: _look(sources[first : first + STAT_BATCH]), parts)
        )


def _look(sources: Sequence[Source]) -> list[tuple[int | None, int]]:
    looked_at = []
    for source in sources:
        size, modified = source.byte_size, source.modified
        if size is None and not is_uri(source.path):
            try:
                status = os.stat(source.path)
                size, modified = status.st_size, status.st_mtime_ns
            except (OSError, ValueError):
                size = -1
        looked_at.append((size, modified))
    return looked_at


def _unread(
    size: int | None,
    modified: int,
    cached: Fingerprint | None,
    limits: LimitsSettings,
) -> Fingerprint:
    """Returns a fingerprint from the size and the cache, without reading the source."""
    if size is None:
        return Fingerprint(None, _UNKNOWN)
    if size < 0:
        return Fingerprint(None, "unreadable", "no such file, or no permission")
    if size == 0:
        return Fingerprint(None, "empty_file", "0 bytes", byte_size=0)
    if size > limits.max_bytes:
        message = f"{size} bytes, limits.max_bytes ({limits.max_bytes})"
        return Fingerprint(None, "too_large", message, byte_size=size)
    if cached is not None and modified and (cached.byte_size, cached.modified) == (size, modified):
        return cached
    return Fingerprint(None, _UNKNOWN, byte_size=size, modified=modified)


def _hash_all(
    sources: Sequence[Source],
    found: Sequence[Fingerprint],
    todo: Sequence[int],
    cached: Mapping[str, Fingerprint],
    limits: LimitsSettings,
) -> Iterator[tuple[int, Fingerprint]]:
    if not todo:
        return
    known = [cached.get(sources[number].uri) for number in todo]
    table = pa.table(
        {
            "number": pa.array(todo, pa.int64()),
            "path": pa.array([os.fsencode(sources[number].path) for number in todo], pa.binary()),
            "version": pa.array([one.version if one else None for one in known], pa.string()),
            "source_hash": pa.array(
                [one.source_hash if one else None for one in known], pa.string()
            ),
        }
    )
    limit = (limits.max_bytes, limits.max_hashed_remote_bytes, limits.max_spool_bytes)
    for row in _hashed(table, limit, is_small=_is_small(sources, found, todo)):
        looked = found[row["number"]]
        size = row["byte_size"]
        yield (
            row["number"],
            Fingerprint(
                row["source_hash"] or None,
                row["reason"] or None,
                row["message"],
                byte_size=looked.byte_size if size < 0 else size,
                modified=looked.modified,
                version=row["version"] or None,
            ),
        )


def _is_small(sources: Sequence[Source], found: Sequence[Fingerprint], todo: Sequence[int]) -> bool:
    """Whether the driver hashes sources in less time than a graph takes to start."""
    if len(todo) > SOURCES_PER_TASK or any(is_uri(sources[number].path) for number in todo):
        return False
    return sum(found[number].byte_size or 0 for number in todo) <= SMALL_BYTES


def _hashed(
    table: pa.Table, limits: tuple[int, int, int], *, is_small: bool
) -> Iterator[dict[str, Any]]:
    """Yields the answer of `_hash_row` to each row, in any order."""
    if is_small:
        yield from (_hash_row(row, *limits) for row in table.to_pylist())
        return
    rows = max(SOURCES_PER_TASK, -(-len(table) // MAX_TASKS))
    blocks = [table.slice(first, rows) for first in range(0, len(table), rows)]
    # Ray types the function as if it took no further arguments.
    hash_row: Any = _hash_row
    # One row in, one row out; limited by reading, as hashing runs at 1 GB/s.
    yield from ray.data.from_arrow(blocks).map(hash_row, fn_args=limits).iter_rows()


def _hash_row(
    row: dict[str, Any], max_bytes: int, max_hashed: int, max_spool: int
) -> dict[str, Any]:
    answer = {
        "number": row["number"],
        "source_hash": "",
        "version": "",
        "byte_size": -1,
        "reason": "",
        "message": "",
    }
    path = os.fsdecode(row["path"])
    if is_uri(path):
        try:
            with opened(path) as remote:
                spool = Spool(max_bytes=max_spool)
                return answer | _remote(remote, row, max_bytes, max_hashed, spool)
        except Exception as error:  # client libraries differ; one file must not fail the run
            return answer | {"reason": "unreadable", "message": one_line(error)}
    try:
        with open(path, "rb") as file:
            return answer | {"source_hash": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        return answer | {"reason": "unreadable", "message": error.strerror or str(error)}


def _remote(
    remote: RemoteFile, row: dict[str, Any], max_bytes: int, max_hashed: int, spool: Spool
) -> dict[str, Any]:
    size, version = remote.byte_size, remote.version
    answer = {"byte_size": -1 if size is None else size, "version": version or ""}
    if size == 0:
        return answer | {"reason": "empty_file", "message": "0 bytes"}
    if size is not None and size > max_bytes:
        message = f"{size} bytes, limits.max_bytes ({max_bytes})"
        return answer | {"reason": "too_large", "message": message}
    if version and version == row["version"] and row["source_hash"]:
        return answer | {"source_hash": row["source_hash"]}
    if version and size is not None and size > max_hashed:
        return answer | {"source_hash": version_hash(version, size)}
    with spool.keeping(os.fsdecode(row["path"]), size) as copy:
        return answer | _hash_stream(remote, max_bytes, copy)


def _hash_stream(remote: RemoteFile, max_bytes: int, copy: KeptCopy) -> dict[str, Any]:
    digest = hashlib.sha256()
    num_bytes = 0
    for chunk in chunks(remote.stream):
        digest.update(chunk)
        copy.write(chunk)
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            message = f"more than limits.max_bytes ({max_bytes})"
            return {"reason": "too_large", "message": message}
    if remote.byte_size not in (None, num_bytes):
        raise BrokenOffError(f"{num_bytes} of {remote.byte_size} bytes came")
    if not num_bytes:
        return {"byte_size": 0, "reason": "empty_file", "message": "0 bytes"}
    copy.keep(digest.hexdigest(), num_bytes)
    return {"byte_size": num_bytes, "source_hash": digest.hexdigest()}


def _read_cache(output: AnyPath) -> dict[str, Fingerprint]:
    file = output / STATE_FOLDER / CACHE_FILE
    if not file.exists():
        return {}
    cached = {}
    try:
        with file.open("rb") as content, pq.ParquetFile(content) as table:
            for batch in table.iter_batches():
                names = batch.schema.names
                columns = {name: batch.column(name).to_pylist() for name in names}
                versions = columns.get("version", [None] * len(batch))
                for uri, source_hash, size, modified, version in zip(
                    *(columns[name] for name in ("source", "source_hash", "byte_size", "modified")),
                    versions,
                    strict=True,
                ):
                    cached[uri] = Fingerprint(source_hash, None, "", size, modified, version)
    except (pa.ArrowException, OSError, KeyError) as error:
        logger.warning("%s is damaged (%s); all sources are read again", file, one_line(error))
        return {}
    return cached


def _write_cache(
    output: AnyPath,
    sources: Sequence[Source],
    fingerprints: Sequence[Fingerprint],
    before: Mapping[str, Fingerprint],
) -> None:
    """Writes all known hashes. Sources not read yet keep the hash of an earlier run."""
    known = []
    for source, fingerprint in zip(sources, fingerprints, strict=True):
        if fingerprint.reason == _UNKNOWN:
            fingerprint = before.get(source.uri, fingerprint)
        if fingerprint.source_hash is not None:
            known.append((source.uri, fingerprint))
    columns = [
        [uri for uri, _ in known],
        *(
            [getattr(fingerprint, name) for _, fingerprint in known]
            for name in ("byte_size", "modified", "source_hash", "version")
        ),
    ]
    file = output / STATE_FOLDER / CACHE_FILE
    with replacing(file) as temporary:
        pq.write_table(pa.table(columns, schema=_CACHE), temporary)
