"""Units of work of an ingest: the sources whose clips share a shard, and their JSON."""

import json
from dataclasses import dataclass
from operator import attrgetter
from typing import Any


@dataclass(frozen=True, slots=True)
class UnitSource:
    """A source with the metadata that its rows need."""

    path: str
    uri: str
    source_hash: str | None
    byte_size: int | None
    label: str | None
    split: str | None
    group: str | None
    reason: str | None = None
    """Reason for a reject without decoding, or None."""
    message: str = ""
    labels: tuple[str, ...] = ()
    start_seconds: float | None = None
    """Start of the stretch. Segments outside the stretch are skipped."""
    end_seconds: float | None = None

    @property
    def all_labels(self) -> list[str]:
        """The labels as rows store them: zero or more."""
        return list(self.labels) or ([self.label] if self.label else [])

    @property
    def stretch(self) -> tuple[float | None, float | None]:
        """Start and end of the stretch of this source, in seconds."""
        return self.start_seconds, self.end_seconds

    @property
    def tags(self) -> dict[str, Any]:
        """Values from the list of sources rather than from their bytes."""
        return {
            "label": self.label,
            "labels": self.all_labels,
            "split": self.split,
            "group": self.group,
        }


_NAMES = UnitSource.__slots__
_values = attrgetter(*_NAMES)


@dataclass(frozen=True)
class Unit:
    """Sources that share one shard."""

    name: str
    sources: tuple[UnitSource, ...]

    def to_json(self) -> str:
        """Serializes the unit for Ray Data. Omits default values, to keep millions small."""
        sources = [
            {
                name: value
                for name, value in zip(_NAMES, _values(source), strict=True)
                if value or value == 0
            }
            for source in self.sources
        ]
        return json.dumps({"name": self.name, "sources": sources})

    @classmethod
    def from_json(cls, text: str) -> "Unit":
        """Parses the output of `to_json`."""
        values = json.loads(text)
        return cls(values["name"], tuple(map(_unit_source, values["sources"])))


def _unit_source(values: dict[str, Any]) -> UnitSource:
    needed = ("source_hash", "byte_size", "label", "split", "group")
    every: dict[str, Any] = dict.fromkeys(needed) | values
    every["labels"] = tuple(values.get("labels", ()))
    return UnitSource(**every)
