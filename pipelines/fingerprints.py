"""What the bytes of each source hash to, computed on Ray Data and remembered between runs."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from pipelines.config import LimitsConfig
from pipelines.ingest_plan import STATE_FOLDER, Fingerprint
from pipelines.progress import OnProgress
from pipelines.shards import temporary_name
from pipelines.sources import Source, SourceList

CACHE_FILE = "fingerprints.parquet"
SOURCES_PER_TASK = 64
_CACHE = pa.schema(
    [
        ("source", pa.string()),
        ("byte_size", pa.int64()),
        ("modified", pa.int64()),
        ("source_hash", pa.string()),
    ]
)


def fingerprint_sources(
    listed: SourceList, output: Path, limits: LimitsConfig, on_progress: OnProgress
) -> list[Fingerprint]:
    """Hashes the sources that an earlier run did not hash, and tells which need no reading."""
    cached = _read_cache(output)
    found = {
        source.uri: _unread(source, limits) or cached.get(_key(source)) for source in listed.sources
    }
    todo = [source for source in listed.sources if found[source.uri] is None]
    for number, (uri, fingerprint) in enumerate(_hash_all(todo), start=1):
        found[uri] = fingerprint
        on_progress(0, len(listed.sources), f"read {number} of {len(todo)} files")
    fingerprints = [found[source.uri] for source in listed.sources]
    known = [fingerprint for fingerprint in fingerprints if fingerprint is not None]
    assert len(known) == len(listed.sources)
    if todo:
        _write_cache(output, listed.sources, known)
    return known


def _unread(source: Source, limits: LimitsConfig) -> Fingerprint | None:
    """Judges a source by its size alone."""
    if source.byte_size < 0:
        return Fingerprint(None, "unreadable", "no such file, or no permission")
    if source.byte_size == 0:
        return Fingerprint(None, "empty_file", "0 bytes")
    if source.byte_size > limits.max_bytes:
        message = f"{source.byte_size} bytes, limits.max_bytes ({limits.max_bytes})"
        return Fingerprint(None, "too_large", message)
    return None


def _hash_all(sources: Sequence[Source]) -> Iterator[tuple[str, Fingerprint]]:
    if not sources:
        return
    num_tasks = -(-len(sources) // SOURCES_PER_TASK)
    dataset = ray.data.from_items(
        [{"uri": source.uri, "path": os.fsencode(source.path)} for source in sources],
        override_num_blocks=num_tasks,
    ).map(_hash_row)  # 1:1; reading, and hashing at a gigabyte a second
    for row in dataset.iter_rows():
        error = row["error"]
        yield (
            row["uri"],
            Fingerprint(None, "unreadable", error) if error else Fingerprint(row["source_hash"]),
        )


def _hash_row(row: dict[str, Any]) -> dict[str, Any]:
    try:
        with open(row["path"], "rb") as file:
            source_hash = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return {"uri": row["uri"], "source_hash": "", "error": error.strerror or str(error)}
    return {"uri": row["uri"], "source_hash": source_hash, "error": ""}


def _key(source: Source) -> tuple[str, int, int]:
    return source.uri, source.byte_size, source.modified


def _read_cache(output: Path) -> dict[tuple[str, int, int], Fingerprint]:
    file = output / STATE_FOLDER / CACHE_FILE
    if not file.exists():
        return {}
    return {
        (row["source"], row["byte_size"], row["modified"]): Fingerprint(row["source_hash"])
        for row in pq.read_table(file).to_pylist()
    }


def _write_cache(
    output: Path, sources: Sequence[Source], fingerprints: Sequence[Fingerprint]
) -> None:
    rows = [
        dict(zip(_CACHE.names, (*_key(source), fingerprint.source_hash), strict=True))
        for source, fingerprint in zip(sources, fingerprints, strict=True)
        if fingerprint.source_hash is not None
    ]
    file = output / STATE_FOLDER / CACHE_FILE
    temporary = temporary_name(file)
    pq.write_table(pa.Table.from_pylist(rows, schema=_CACHE), temporary)
    os.replace(temporary, file)
