"""Lists of sources: CSV, TSV, JSON Lines or Parquet with a column `path`.

Other columns are optional: label or labels, split, group, and the segment of the file that the row
describes (start, end). Reading a list does not stat its files, so that long lists load fast.
"""

import csv
import json
import math
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import UserError
from pipelines.filesystems import opened
from pipelines.paths import check_password, is_uri
from pipelines.quantities import counted
from pipelines.redaction import one_line
from pipelines.sources.source import SPLITS, Source, suffix_of, text_of, unique_labels

LIST_COLUMNS = ("path", "label", "labels", "split", "group", "start", "end")
LABEL_SEPARATOR = "|"
"""Separator of the labels of a source in a text list."""
_LIST_ROWS = 65_536


def read_list(file: str, base: str, location: str) -> Iterator[Source]:
    """Yields the sources of a list. Relative paths start at `base`."""
    split_of: dict[str, str] = {}
    is_typed = suffix_of(location) in (".csv", ".tsv")
    for number, row in enumerate(_read_rows(file, location), start=1):
        name = row.get("path")
        if name is None or name == "":
            raise UserError(f"list ({location}): row {number} has no path")
        try:
            source = _listed(row, _joined(base, _path(name, base, is_typed=is_typed)))
            _check_group(source, split_of)
            yield source
        except ValueError as error:
            raise UserError(f"list ({location}): row {number}: {error}") from error


def list_notes(sources: Sequence[Source]) -> list[str]:
    """Returns notes on splits and labels that the author of a list may not have intended."""
    notes = []
    splits = Counter(source.split for source in sources)
    if set(splits) != {None}:
        counts = ", ".join(
            f"{split or 'none'} ({counted(count, 'row')})"
            for split, count in sorted(splits.items(), key=lambda item: item[0] or "")
        )
        notes.append(f"splits are taken from the list: {counts}")
    if others := sorted(split for split in splits if split and split not in SPLITS.values()):
        notes.append(
            f"splits {', '.join(others)} are neither train, val nor test: name them in "
            "splits to train on them"
        )
    with_comma = [s for s in sources if len(s.labels) == 1 and "," in s.labels[0]]
    if with_comma:
        notes.append(
            f"labels with a comma ({with_comma[0].labels[0]}) are one label, in "
            f"{counted(len(with_comma), 'row')}; {LABEL_SEPARATOR} separates labels"
        )
    return notes


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
    """Returns a path as written.

    In a typed list, surrounding whitespace is stripped unless a file has it in its name.
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
    """Resolves a path of a list, which may be relative to the list."""
    if text.startswith("file://"):
        return os.path.abspath(unquote(text.removeprefix("file://")))
    if is_uri(text):
        check_password(text)
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
    """Returns whether a cell is empty. Numeric tables write empty cells as NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Any, column: str) -> str:
    if isinstance(value, dict | list):
        raise ValueError(f"{column} ({value}) must be text")
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


@contextmanager
def local_list(location: str) -> Iterator[str]:
    """Yields a local path of a list. A remote list is copied while the block runs."""
    if not is_uri(location):
        yield location
        return
    with tempfile.NamedTemporaryFile(prefix="xkd-list-", suffix=suffix_of(location)) as copy:
        try:
            with opened(location) as remote:
                shutil.copyfileobj(remote.stream, copy)
        except UserError:
            raise
        except Exception as error:  # client libraries differ in what they raise
            raise UserError(f"input ({location}) cannot be read: {one_line(error)}") from error
        copy.flush()
        yield copy.name


def _read_rows(file: str, location: str) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of a list, reduced to the known columns.

    Raises:
        UserError: If the list cannot be read or has no column `path`.
    """
    readers = {".parquet": _parquet_rows, ".jsonl": _json_rows}
    try:
        yield from readers.get(suffix_of(location), _text_rows)(file)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise UserError(f"list ({location}) cannot be read: {one_line(error)}") from error
    except KeyError as error:
        raise UserError(
            f"list ({location}) must have a column path, but has {error.args[0]}"
        ) from (error)


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
    # Paths may be invalid UTF-8; surrogates preserve their bytes for the filesystem.
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
