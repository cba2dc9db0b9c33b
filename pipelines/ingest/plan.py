"""The plan of an ingest: groups sources into units and skips those in complete units.

The hash of its bytes assigns a source to a unit. A shard is therefore a random sample of the input,
and a restart after a kill plans the same units. Complete units are revised (`unit_shards`) where
sources changed or were removed, so the output always matches the current input.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter

from pipelines.config.ingest import IngestSettings
from pipelines.ingest.unit import Unit, UnitSource
from pipelines.ingest.unit_shards import Revision, StoredSource, StoredUnits
from pipelines.sources.source import Fingerprint, Source, SourceList

UNIT_BYTES = 256_000_000
"""Size at which a unit is full, so that units take similar time, in bytes."""
MIN_UNITS = 8
MAX_SHARDS_PER_FOLDER = 4096
"""With more shards, each goes to one of 4,096 subfolders, because file systems and people are slow
with folders of a million files."""
PASSING_REASONS = frozenset({"unreadable", "duplicate"})
"""Reasons outside the file. A source is retried when its reason no longer applies."""


@dataclass(frozen=True)
class Changes:
    """Differences between the input and the one that the output was made from."""

    new: int = 0
    changed: int = 0
    """Sources with new bytes or a new stretch, and those unreadable before."""
    removed: int = 0
    renamed: int = 0
    """Sources with a new name, label, split or group, but the same bytes."""


@dataclass(frozen=True)
class IngestPlan:
    """The work that makes the output match the input."""

    units: list[Unit]
    revisions: dict[str, Revision]
    """Revisions by shard."""
    changes: Changes


def make_plan(
    listed: SourceList,
    fingerprints: Sequence[Fingerprint],
    done: StoredUnits,
    settings: IngestSettings,
    again: Set[str] = frozenset(),
) -> IngestPlan:
    """Compares the input with the complete units, and groups missing sources into units.

    Args:
        listed: The input.
        fingerprints: Fingerprints of its sources.
        done: Contents of the complete units.
        settings: How sources become rows.
        again: Reasons of rejects to decode again, in addition to those of `settings`.
    """
    sources = _with_hashes(listed, fingerprints, done, settings)
    # Neighbors in a folder are alike. Sorting by hash separates them in the shards.
    # The sort is stable, so sorting twice needs no tuples of keys.
    sources.sort(key=attrgetter("uri"))
    sources.sort(key=lambda source: source.source_hash or "")
    passing = PASSING_REASONS | again | frozenset(settings.retry_rejects)
    ledger = _Ledger(sources, done, settings.keep_removed, passing)
    for held in chain(done.accepted.values(), done.rejected.values()):
        ledger.compare(held)
    units = []
    taken = set(done.shards)
    # A small input also becomes several units, so that every worker gets some.
    sources_per_unit = min(settings.sources_per_shard, -(-len(sources) // MIN_UNITS))
    filled = list(_fill_units(sources, sources_per_unit))
    has_subfolders = len(filled) > MAX_SHARDS_PER_FOLDER
    for unit in filled:
        missing = tuple(source for source in unit if source.uri not in ledger.finished)
        if missing:
            units.append(Unit(_unit_name(missing, taken, has_subfolders), missing))
            taken.add(f"{units[-1].name}.parquet")
    return IngestPlan(units, dict(ledger.revisions), ledger.changes())


class _Ledger:
    """Records which contents of the complete units are still valid."""

    def __init__(
        self,
        sources: Sequence[UnitSource],
        done: StoredUnits,
        keep_removed: bool,
        passing: Set[str],
    ) -> None:
        self._sources = sources
        # Only sources that complete units hold are looked up.
        held = {held.source for held in done.accepted.values()} | done.rejected.keys()
        self._by_uri = {source.uri: source for source in sources if source.uri in held}
        self._by_hash = {
            source.source_hash: source
            for source in sources
            if not source.reason and source.source_hash in done.accepted
        }
        self._keep_removed = keep_removed
        self._passing = passing
        self._known: set[str] = set()
        self._gone: set[str] = set()
        self._num_renamed = 0
        self.finished: set[str] = set()
        self.revisions: defaultdict[str, Revision] = defaultdict(dict)

    def compare(self, held: StoredSource) -> None:
        """Decides whether rows of a source stay. Accepted sources must come first."""
        self._known.add(held.source)
        source = self._now(held)
        if source is not None:
            self.finished.add(source.uri)
            self._known.add(source.uri)
            self._amend(held, source)
        elif held.source in self._by_uri or not self._keep_removed:
            self.revisions[held.shard][held.key] = None
            self._gone.add(held.source)

    def changes(self) -> Changes:
        """Counts the differences."""
        missing = [source.uri for source in self._sources if source.uri not in self.finished]
        num_changed = sum(uri in self._known for uri in missing)
        return Changes(
            new=len(missing) - num_changed,
            changed=num_changed,
            removed=len(self._gone - self._by_uri.keys()),
            renamed=self._num_renamed,
        )

    def _now(self, held: StoredSource) -> UnitSource | None:
        """Returns the source of the current input that the rows are valid for."""
        there = self._by_uri.get(held.source)
        if held.reason is not None:
            if there is None or there.uri in self.finished:
                return None
            return there if self._is_same_reject(held, there) else None
        if (same := self._by_hash.get(held.source_hash)) is not None:
            # Another stretch has other segments, so the source is decoded again.
            return same if held.stretch == same.stretch else None
        # A source that is unreadable now keeps its earlier rows.
        return there if there is not None and there.reason == "unreadable" else None

    def _is_same_reject(self, held: StoredSource, source: UnitSource) -> bool:
        """Whether a source would be rejected again, judged without decoding it."""
        if (held.source_hash, held.stretch) != (source.source_hash, source.stretch):
            return False
        if source.reason is not None:
            return (held.reason, held.message) == (source.reason, source.message)
        return held.reason not in self._passing

    def _amend(self, held: StoredSource, source: UnitSource) -> None:
        tags = {name: source.tags[name] for name in held.tags}
        if source.reason is None and (held.source, held.tags) != (source.uri, tags):
            self.revisions[held.shard][held.key] = {"source": source.uri, **tags}
            self._num_renamed += 1


def _with_hashes(
    listed: SourceList,
    fingerprints: Sequence[Fingerprint],
    done: StoredUnits,
    settings: IngestSettings,
) -> list[UnitSource]:
    """Joins the sources with their hashes; the second one of two equal files is a duplicate."""
    has_splits = any(source.split for source in listed.sources)
    # The source that already has rows stays the original of its duplicates.
    first = {
        fingerprint.source_hash: source.uri
        for source, fingerprint in zip(listed.sources, fingerprints, strict=True)
        if (held := done.accepted.get(fingerprint.source_hash or "")) is not None
        and held.source == source.uri
    }
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
    """Draws a split from the group or the content, so that every run agrees."""
    key = source.group or source_hash
    if key is None:
        return None
    draw = int.from_bytes(hashlib.sha256(f"split:{key}".encode()).digest()[:8], "big") / 2**64
    return "test" if draw < settings.heldout_fraction else "train"


def _fill_units(sources: Iterable[UnitSource], sources_per_unit: int) -> Iterator[list[UnitSource]]:
    unit: list[UnitSource] = []
    num_bytes = 0
    for source in sources:
        unit.append(source)
        num_bytes += source.byte_size or 0
        if len(unit) == sources_per_unit or num_bytes >= UNIT_BYTES:
            yield unit
            unit, num_bytes = [], 0
    if unit:
        yield unit


def _unit_name(sources: Sequence[UnitSource], taken: Set[str], has_subfolders: bool) -> str:
    """Names a unit by the content of its sources, wherever they are.

    Training reads shards in the order of their names, so the same media elsewhere give the same
    order. A name is taken if a source left and came back, or if no source of two units has a hash.
    """
    text = json.dumps([source.source_hash for source in sources])
    while True:
        name = hashlib.sha256(text.encode()).hexdigest()[:24]
        if has_subfolders:
            name = f"{name[:3]}/{name}"  # sorts as the name without its folder does
        if f"{name}.parquet" not in taken:
            return name
        text += "again"
