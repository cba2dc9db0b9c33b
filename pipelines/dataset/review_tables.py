"""The tables of a clip dataset's page: counts by label, split, length, size and codec."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

LENGTHS = (5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Bin edges of the table of source lengths, in seconds."""


def label_text(row: Mapping[str, Any]) -> str:
    """Returns the label of a row, or all of its labels."""
    return row["label"] or ", ".join(row["labels"] or ())


def frequencies(values: Iterable[str]) -> dict[str, int]:
    """Counts equal values, the most frequent first."""
    return dict(Counter(values).most_common())


def streams_held(table: pa.Table) -> dict[str, int]:
    """Counts clips by the streams that they have."""
    names = {
        (True, True): "picture and sound",
        (True, False): "picture alone",
        (False, True): "sound alone",
        (False, False): "neither",
    }
    pictures = table["num_frames"].to_numpy() > 0
    sounds = table["has_audio"].to_numpy(zero_copy_only=False)
    return frequencies(names[bool(p), bool(s)] for p, s in zip(pictures, sounds, strict=True))


def labels_by_split(table: pa.Table) -> list[tuple[str, dict[str, int]]]:
    """Counts clips by label and split; a clip with several labels counts for each."""
    counts: dict[str, Counter[str]] = {}
    for row in table.select(["label", "labels", "split"]).to_pylist():
        for label in row["labels"] or filter(None, [row["label"]]):
            counts.setdefault(label, Counter())[row["split"] or "no split"] += 1
    return sorted(
        ((label, dict(splits)) for label, splits in counts.items()),
        key=lambda item: (-sum(item[1].values()), item[0]),
    )


def count_tables(table: pa.Table) -> dict[str, dict[str, int]]:
    """Counts sources and clips by property, one table per property."""
    columns = {name: table[name].to_pylist() for name in COLUMNS}
    lengths: Counter[str] = Counter()
    for source, seconds in zip(columns["source"], columns["duration_seconds"], strict=True):
        lengths[source] += seconds
    first_row: dict[str, int] = {}
    for row, source in enumerate(columns["source"]):
        first_row.setdefault(source, row)
    own = list(first_row.values())
    pictured = [i for i in own if columns["num_frames"][i]]

    def of(rows: Sequence[int], name: str) -> list[Any]:
        return [columns[name][row] for row in rows]

    def sizes(width: str, height: str) -> dict[str, int]:
        pairs = zip(of(pictured, width), of(pictured, height), strict=True)
        return frequencies(f"{w} x {h}" for w, h in pairs)

    return {
        "Length of a source": _binned(lengths.values()),
        "Length of a clip": frequencies(
            f"{seconds:.1f} s" for seconds in columns["duration_seconds"]
        ),
        "Size of a source": sizes("native_width", "native_height"),
        "Size as stored": sizes("width", "height"),
        "Frames a second of a source": frequencies(
            f"{rate:.3f}".rstrip("0").rstrip(".") if rate else "unknown"
            for rate in of(pictured, "native_rate")
        ),
        "Picture codec": frequencies(codec or "none" for codec in of(own, "video_codec")),
        "Sound codec": frequencies(codec or "none" for codec in of(own, "audio_codec")),
        "Container": frequencies(name or "unknown" for name in of(own, "container")),
        "Turned by": frequencies(
            f"{angle or 0} degrees{', mirrored' if is_mirrored else ''}"
            for angle, is_mirrored in zip(
                of(pictured, "rotation"), of(pictured, "is_mirrored"), strict=True
            )
        ),
        "Decoding errors in a clip": frequencies(str(count) for count in columns["decode_errors"]),
        "Clock leaps in a clip": _repairs(columns["clock_leaps"]),
        "Holes in the sound of a clip": _repairs(columns["sound_gaps"]),
        "Holes in the sound's timestamps alone": _repairs(columns["bridged_gaps"]),
        "Last picture held while the sound goes on": _repairs(columns["held_picture"]),
        "Gaps between the pictures of a clip": _repairs(columns["picture_gaps"]),
    }


def _repairs(counts: Sequence[int | None]) -> dict[str, int]:
    """Counts clips by number of repairs; returns an empty table if no clip has any."""
    return frequencies(str(count or 0) for count in counts) if any(counts) else {}


def _binned(seconds: Iterable[float]) -> dict[str, int]:
    names = [
        f"under {LENGTHS[0]:g} s",
        *(f"{low:g} to {high:g} s" for low, high in pairwise(LENGTHS)),
        f"{LENGTHS[-1]:g} s and more",
    ]
    counts = np.bincount(np.digitize(list(seconds), LENGTHS), minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


def contact_sheet(table: pa.Table, most: int) -> NDArray[np.int64]:
    """Chooses clips of different sources that cover as many labels as possible."""
    by_label: dict[str, list[int]] = {}
    seen = set()
    for row, values in enumerate(table.select(["source", "label", "labels"]).to_pylist()):
        if values["source"] not in seen:
            seen.add(values["source"])
            by_label.setdefault(label_text(values), []).append(row)
    chosen: list[int] = []
    rounds = max(map(len, by_label.values()), default=0)
    for number in range(rounds):
        for rows in by_label.values():
            if number < len(rows) and len(chosen) < most:
                chosen.append(rows[number])
    return np.array(sorted(chosen, key=lambda row: label_text(table.slice(row, 1).to_pylist()[0])))


COLUMNS = (
    "clip_id",
    "source",
    "label",
    "labels",
    "split",
    "start_seconds",
    "duration_seconds",
    "num_frames",
    "height",
    "width",
    "has_audio",
    "container",
    "video_codec",
    "audio_codec",
    "native_width",
    "native_height",
    "native_rate",
    "rotation",
    "decode_errors",
    "is_mirrored",
    "declares_picture",
    "declares_sound",
    "clock_leaps",
    "sound_gaps",
    "bridged_gaps",
    "rebased_clocks",
    "held_picture",
    "picture_gaps",
)
