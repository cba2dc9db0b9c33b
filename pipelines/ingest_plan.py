"""What an ingest has to do: sources become units, and units that are complete are left out.

A unit writes one shard of clips and one of rejects. It is complete when its shard of clips is
there, which is renamed into place last. Sources are spread over units by the hash of their bytes,
so a shard is a random sample of the input and a run that was killed plans the same units again.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.config import IngestSettings
from pipelines.errors import UserError
from pipelines.schema import CLIPS_FOLDER, REJECTS_FOLDER
from pipelines.sources import Source, SourceList

STATE_FOLDER = ".ingest"
SETTINGS_FILE = "settings.json"
UNIT_BYTES = 256_000_000
"""Bytes of sources after which a unit is full, so that units take similar time."""
MIN_UNITS = 8
FREE_TO_CHANGE = frozenset({"num_workers", "max_reject_fraction"})
"""Settings that change no row."""


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


@dataclass(frozen=True, slots=True)
class UnitSource:
    """A source with all that its rows need to know."""

    path: str
    uri: str
    source_hash: str | None
    byte_size: int | None
    label: str | None
    split: str | None
    group: str | None
    reason: str | None = None
    """Set if it is rejected without being decoded."""
    message: str = ""
    labels: tuple[str, ...] = ()
    start_seconds: float | None = None
    """Segments that lie outside of this stretch are left out."""
    end_seconds: float | None = None


@dataclass(frozen=True)
class Unit:
    """Sources that go into one shard."""

    name: str
    sources: tuple[UnitSource, ...]

    def to_json(self) -> str:
        """For a row of Ray Data; what has its default is left out, for there may be millions."""
        sources = [
            {
                name: value
                for name in UnitSource.__slots__
                if (value := getattr(source, name)) not in (None, "", ())
            }
            for source in self.sources
        ]
        return json.dumps({"name": self.name, "sources": sources})

    @classmethod
    def from_json(cls, text: str) -> "Unit":
        """The reverse of `to_json`."""
        values = json.loads(text)
        return cls(values["name"], tuple(map(_unit_source, values["sources"])))


def _unit_source(values: dict[str, Any]) -> UnitSource:
    needed = ("source_hash", "byte_size", "label", "split", "group")
    every: dict[str, Any] = dict.fromkeys(needed) | values
    every["labels"] = tuple(values.get("labels", ()))
    return UnitSource(**every)


@dataclass(frozen=True)
class Done:
    """The sources that complete units hold."""

    shards: tuple[str, ...]
    accepted: Mapping[str, str]
    """Source by hash."""
    rejected: Mapping[str, str | None]
    """Hash by source."""


def read_done(output: Path) -> Done:
    """Reads which sources the complete shards hold."""
    shards = tuple(sorted(file.name for file in (output / CLIPS_FOLDER).glob("*.parquet")))
    accepted: dict[str, str] = {}
    rejected: dict[str, str | None] = {}
    for name in shards:
        table = pq.read_table(
            output / CLIPS_FOLDER / name, columns=["source", "source_hash"], partitioning=None
        )
        for row in table.group_by(["source", "source_hash"]).aggregate([]).to_pylist():
            accepted[row["source_hash"]] = row["source"]
        rejects = output / REJECTS_FOLDER / name
        if rejects.exists():
            columns = ["source", "source_hash"]
            for row in pq.read_table(rejects, columns=columns, partitioning=None).to_pylist():
                rejected[row["source"]] = row["source_hash"]
    return Done(shards, accepted, rejected)


def remove_incomplete(output: Path, done: Done) -> None:
    """Removes rejects of units that were killed before their clips were in place."""
    for file in (output / REJECTS_FOLDER).glob("*.parquet"):
        if file.name not in done.shards:
            file.unlink(missing_ok=True)


def plan_units(
    listed: SourceList,
    fingerprints: Sequence[Fingerprint],
    done: Done,
    settings: IngestSettings,
) -> list[Unit]:
    """Spreads what is not done yet over units.

    Raises:
        UserError: If a source that is done has changed since.
    """
    here = {source.uri for source in listed.sources}
    held = {key: uri for key, uri in done.accepted.items() if uri in here}
    sources = _with_hashes(listed, fingerprints, held, settings)
    # Sorted by content: neighbours in a folder are alike, neighbours in a shard should not be.
    sources.sort(key=lambda source: (source.source_hash or "", source.uri))
    known = set(done.shards)
    accepted = set(done.accepted.values())
    units = []
    # An input of few sources becomes several units all the same, so that all workers have some.
    sources_per_unit = min(settings.sources_per_shard, -(-len(sources) // MIN_UNITS))
    for unit in _fill_units(sources, sources_per_unit):
        if f"{unit.name}.parquet" in known:
            continue
        missing = tuple(
            source for source in unit.sources if not _is_done(source, done, accepted, here)
        )
        if missing:
            units.append(Unit(_unit_name(missing), missing))
    return units


def check_same(output: Path, input_path: str | None, settings: IngestSettings) -> None:
    """Makes sure that a folder is empty or holds a dataset of this input and these settings.

    Raises:
        UserError: If it holds anything else.
    """
    file = output / STATE_FOLDER / SETTINGS_FILE
    if not file.exists():
        others = sorted(entry.name for entry in output.iterdir()) if output.is_dir() else []
        others = [name for name in others if name != STATE_FOLDER]
        if others:
            raise UserError(
                f"output ({output}) must be empty or a clip dataset, but holds {others[0]}"
            )
        return
    state = json.loads(file.read_text())
    here = fixed_settings(settings)
    changed = [
        f"{name} is {state['settings'].get(name)} there and {value} here"
        for name, value in here.items()
        if state["settings"].get(name, value) != value
    ]
    if input_path is not None and state["input"] != input_path:
        changed.insert(0, f"input is {state['input']} there and {input_path} here")
    if changed:
        raise UserError(
            f"output ({output}) holds another clip dataset: {'; '.join(changed)}. "
            "Take another output or the same settings"
        )


def fixed_settings(settings: IngestSettings) -> dict[str, Any]:
    """The settings that rows depend on, flat."""
    values = settings.model_dump(mode="json", exclude=set(FREE_TO_CHANGE))
    limits = values.pop("limits")
    return values | {f"limits.{name}": value for name, value in limits.items()}


def _with_hashes(
    listed: SourceList,
    fingerprints: Sequence[Fingerprint],
    held: Mapping[str, str],
    settings: IngestSettings,
) -> list[UnitSource]:
    """Joins the sources with their hashes; the second one of two equal files is a duplicate."""
    has_splits = any(source.split for source in listed.sources)
    first = dict(held)
    sources = []
    for source, fingerprint in zip(listed.sources, fingerprints, strict=True):
        source_hash = fingerprint.source_hash
        reason, message = fingerprint.reason, fingerprint.message
        if source_hash is not None:
            original = first.setdefault(source_hash, source.uri)
            if original != source.uri:
                reason, message = "duplicate", f"same bytes as {original}"
        split = source.split if has_splits else _split(source, source_hash, settings)
        sources.append(
            UnitSource(
                path=source.path,
                uri=source.uri,
                source_hash=source_hash,
                byte_size=fingerprint.byte_size,
                label=source.label,
                split=split,
                group=source.group,
                reason=reason,
                message=message,
                labels=source.labels,
                start_seconds=source.start_seconds,
                end_seconds=source.end_seconds,
            )
        )
    return sources


def _split(source: Source, source_hash: str | None, settings: IngestSettings) -> str | None:
    """Draws a split from the group or the content, so it is the same in every run."""
    key = source.group or source_hash
    if key is None:
        return None
    draw = int.from_bytes(hashlib.sha256(f"split:{key}".encode()).digest()[:8], "big") / 2**64
    return "test" if draw < settings.heldout_fraction else "train"


def _is_done(source: UnitSource, done: Done, accepted: Set[str], here: Set[str]) -> bool:
    """Whether a source is in a shard, also under a name that it had before."""
    holder = done.accepted.get(source.source_hash or "")
    if holder == source.uri:
        return True
    if source.uri in done.rejected and done.rejected[source.uri] == source.source_hash:
        return True
    if source.uri in done.rejected or source.uri in accepted:
        raise UserError(
            f"source ({source.uri}) has changed since it was ingested; "
            "ingest into another output, or put the file back"
        )
    return holder is not None and holder not in here and source.reason is None


def _fill_units(sources: Iterable[UnitSource], sources_per_unit: int) -> Iterator[Unit]:
    unit: list[UnitSource] = []
    num_bytes = 0
    for source in sources:
        unit.append(source)
        num_bytes += source.byte_size or 0
        if len(unit) == sources_per_unit or num_bytes >= UNIT_BYTES:
            yield Unit(_unit_name(unit), tuple(unit))
            unit, num_bytes = [], 0
    if unit:
        yield Unit(_unit_name(unit), tuple(unit))


def _unit_name(sources: Sequence[UnitSource]) -> str:
    text = json.dumps([[source.source_hash, source.uri] for source in sources])
    return hashlib.sha256(text.encode()).hexdigest()[:24]
