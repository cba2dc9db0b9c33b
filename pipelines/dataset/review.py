"""What a clip dataset holds and what is doubtful about it, as plain numbers and pictures.

`review` gathers it, `dataset_page` shows it. Near-duplicates between clips that are trained on and
clips that are held out, here or in another dataset, are leaks; their ids go into a file that
pretraining leaves out (`exclude=FILE`).
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config.dataset import DatasetSettings
from pipelines.dataset.clip_dataset import Clip, ClipDataset
from pipelines.dataset.near_duplicates import SCENE, Alike, find_alike
from pipelines.dataset.scan import Scan, scan_dataset
from pipelines.filesystems import list_files
from pipelines.media.decode import DecodeError
from pipelines.media.decoder_process import DecoderProcess
from pipelines.media.windows import spread
from pipelines.progress import OnProgress

SILENT_PEAK = 0.001
"""Of full scale: 60 dB below it."""
STATIC_MOTION = 1.0
"""Mean gray levels of 256 between two frames."""
MAX_PER_REASON = 6
NO_PICTURE_REASONS = frozenset({"unreadable", "empty_file", "not_media", "no_streams"})
_THUMBNAIL_SECONDS = 10.0
_THUMBNAIL_BYTES = 2_000_000_000

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
)
LENGTHS = (5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Edges of the table of source lengths, in seconds."""


@dataclass(frozen=True)
class ShownClip:
    """A clip to be looked at."""

    clip_id: str
    title: str
    label: str
    split: str
    frames: NDArray[np.uint8] | None
    waveform: NDArray[np.int16] | None
    note: str = ""


@dataclass(frozen=True)
class ShownPair:
    """Two clips that are alike."""

    kind: str
    agreement: float
    is_leak: bool
    first: ShownClip
    second: ShownClip


@dataclass(frozen=True)
class ShownReject:
    """A source that gave no clips, with its first frame if there is one."""

    path: str
    message: str
    frame: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Review:
    """All that the page tells."""

    path: str
    manifest: Mapping[str, Any]
    stored_bytes: int
    num_sources: int
    seconds: float
    streams: Mapping[str, int]
    splits: Mapping[str, int]
    labels: Sequence[tuple[str, Mapping[str, int]]]
    """Each label with its clips by split, the most frequent first."""
    tables: Mapping[str, Mapping[str, int]]
    """Counts by what the sources are, such as codecs."""
    rejects: Mapping[str, Sequence[ShownReject]]
    silent: Sequence[str]
    """Ids."""
    static: Sequence[str]
    shown_silent: Sequence[ShownClip]
    shown_static: Sequence[ShownClip]
    sheet: Sequence[ShownClip]
    against: Sequence[str]
    """Other datasets that were compared."""
    pairs: Sequence["NamedPair"]
    shown_pairs: Sequence[ShownPair]
    leaks: Sequence[str]
    """Clips trained on that are alike to clips held out, themselves or by way of others alike."""
    duplicates: Sequence[str]
    """All but one of clips trained on that are alike to each other."""


@dataclass(frozen=True)
class NamedPair:
    """Two clips that are alike, for a table."""

    kind: str
    agreement: float
    is_leak: bool
    first_id: str
    first_source: str
    first_split: str
    second_id: str
    second_source: str
    second_split: str


def review(dataset: ClipDataset, settings: DatasetSettings, on_progress: OnProgress) -> Review:
    """Looks at all clips; Ray is connected."""
    table = dataset.small_columns(COLUMNS)
    scan = scan_dataset(dataset, on_progress)
    others = [ClipDataset.open(place) for place in settings.against]
    every = _Every.gather(dataset, table, scan, others, on_progress)
    alike = find_alike(every.frames, every.sounds, every.source_numbers())
    held_out = every.held_out(settings.train_splits)
    is_leak = [
        pair.kind != SCENE and held_out[pair.first] != held_out[pair.second] for pair in alike
    ]
    ids = table["clip_id"].to_pylist()
    silent, static = (
        np.flatnonzero(scan.peak < SILENT_PEAK),
        np.flatnonzero(scan.motion < STATIC_MOTION),
    )
    show = _Shower(every, settings.max_shown)
    return Review(
        path=dataset.path,
        manifest=dataset.manifest,
        stored_bytes=sum(entry.byte_size or 0 for entry in list_files(f"{dataset.path}/clips")),
        num_sources=len(set(table["source"].to_pylist())),
        seconds=float(np.sum(table["duration_seconds"].to_numpy())),
        streams=_streams(table),
        splits=_counted(split or "no split" for split in table["split"].to_pylist()),
        labels=_labels(table),
        tables=_tables(table),
        rejects=_rejects(dataset),
        silent=[ids[row] for row in silent],
        static=[ids[row] for row in static],
        shown_silent=show.clips(silent, [f"peak {scan.peak[row]:.5f}" for row in silent]),
        shown_static=show.clips(static, [f"motion {scan.motion[row]:.2f}" for row in static]),
        sheet=show.clips(_sheet(table, settings.max_shown), None),
        against=[other.path for other in others],
        pairs=[every.named(pair, leak) for pair, leak in zip(alike, is_leak, strict=True)],
        shown_pairs=show.pairs(alike, is_leak),
        leaks=_leaks(alike, held_out, every.ids),
        duplicates=_duplicates(alike, held_out, every.ids),
    )


@dataclass(frozen=True)
class _Every:
    """The clips of the dataset and of those that it is compared with, one after the other."""

    datasets: Sequence[ClipDataset]
    owners: NDArray[np.int64]
    rows: NDArray[np.int64]
    ids: Sequence[str]
    sources: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    starts: Sequence[float]
    frames: Sequence[Any]
    sounds: Sequence[Any]

    @classmethod
    def gather(
        cls,
        dataset: ClipDataset,
        table: pa.Table,
        scan: Scan,
        others: Sequence[ClipDataset],
        on_progress: OnProgress,
    ) -> "_Every":
        """Scans the other datasets as well."""
        tables = [table, *(other.small_columns(COLUMNS) for other in others)]
        scans = [scan, *(scan_dataset(other, on_progress) for other in others)]
        joined = pa.concat_tables(tables)
        sizes = [len(part) for part in tables]
        return cls(
            [dataset, *others],
            np.repeat(np.arange(len(sizes)), sizes),
            np.concatenate([np.arange(size) for size in sizes]),
            joined["clip_id"].to_pylist(),
            joined["source"].to_pylist(),
            [_label(row) for row in joined.select(["label", "labels"]).to_pylist()],
            [split or "" for split in joined["split"].to_pylist()],
            joined["start_seconds"].to_pylist(),
            [codes for part in scans for codes in part.frames],
            [codes for part in scans for codes in part.sounds],
        )

    def source_numbers(self) -> list[int]:
        """A number for each source; one that lies in two datasets is two, and so is compared."""
        numbers: dict[tuple[int, str], int] = {}
        return [
            numbers.setdefault((int(owner), source), len(numbers))
            for owner, source in zip(self.owners, self.sources, strict=True)
        ]

    def held_out(self, train_splits: Sequence[str]) -> list[bool]:
        """Whether a clip is not trained on: in another split, or in another dataset."""
        return [
            bool(owner) or split not in (*train_splits, "")
            for owner, split in zip(self.owners, self.splits, strict=True)
        ]

    def place(self, clip: int) -> str:
        """The split of a clip, and the dataset if it is another one."""
        split = self.splits[clip] or "no split"
        owner = int(self.owners[clip])
        return f"{split} of {self.datasets[owner].path}" if owner else split

    def named(self, pair: Alike, is_leak: bool) -> NamedPair:
        """A pair by the names of its clips."""
        first, second = (
            (self.ids[clip], self.sources[clip], self.place(clip))
            for clip in (pair.first, pair.second)
        )
        return NamedPair(pair.kind, pair.agreement, is_leak, *first, *second)


class _Shower:
    """Reads the clips that are shown."""

    def __init__(self, every: _Every, most: int) -> None:
        self._every, self._most = every, most

    def clips(self, rows: NDArray[np.int64], notes: Sequence[str] | None) -> list[ShownClip]:
        """Some of the rows, evenly spread; rows of the dataset come first, so they are clips."""
        chosen = spread(len(rows), self._most)
        return [self._clip(int(rows[i]), notes[i] if notes else "") for i in chosen]

    def pairs(self, alike: Sequence[Alike], is_leak: Sequence[bool]) -> list[ShownPair]:
        """Leaks first, and the surest."""
        order = sorted(range(len(alike)), key=lambda i: not is_leak[i])
        return [
            ShownPair(
                alike[i].kind,
                alike[i].agreement,
                is_leak[i],
                self._clip(alike[i].first),
                self._clip(alike[i].second),
            )
            for i in order[: self._most]
        ]

    def _clip(self, clip: int, note: str = "") -> ShownClip:
        every = self._every
        dataset = every.datasets[int(every.owners[clip])]
        read: Clip = next(dataset.clips([int(every.rows[clip])]))
        name = os.path.basename(every.sources[clip])
        return ShownClip(
            every.ids[clip],
            f"{name} at {every.starts[clip]:g} s",
            every.labels[clip],
            every.place(clip),
            None if read.frames is None else read.frames.copy(),
            None if read.waveform is None else read.waveform.copy(),
            note,
        )


def _label(row: Mapping[str, Any]) -> str:
    return row["label"] or ", ".join(row["labels"] or ())


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _streams(table: pa.Table) -> dict[str, int]:
    names = {
        (True, True): "picture and sound",
        (True, False): "picture alone",
        (False, True): "sound alone",
        (False, False): "neither",
    }
    pictures = table["num_frames"].to_numpy() > 0
    sounds = table["has_audio"].to_numpy(zero_copy_only=False)
    return _counted(names[bool(p), bool(s)] for p, s in zip(pictures, sounds, strict=True))


def _labels(table: pa.Table) -> list[tuple[str, dict[str, int]]]:
    """Clips of each label by split; a clip of several labels counts for each."""
    counts: dict[str, Counter[str]] = {}
    for row in table.select(["label", "labels", "split"]).to_pylist():
        for label in row["labels"] or filter(None, [row["label"]]):
            counts.setdefault(label, Counter())[row["split"] or "no split"] += 1
    return sorted(
        ((label, dict(splits)) for label, splits in counts.items()),
        key=lambda item: (-sum(item[1].values()), item[0]),
    )


def _tables(table: pa.Table) -> dict[str, dict[str, int]]:
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
        return _counted(f"{w} x {h}" for w, h in pairs)

    return {
        "Length of a source": _binned(lengths.values()),
        "Length of a clip": _counted(f"{seconds:.1f} s" for seconds in columns["duration_seconds"]),
        "Size of a source": sizes("native_width", "native_height"),
        "Size as stored": sizes("width", "height"),
        "Frames a second of a source": _counted(
            f"{rate:.3f}".rstrip("0").rstrip(".") if rate else "unknown"
            for rate in of(pictured, "native_rate")
        ),
        "Picture codec": _counted(codec or "none" for codec in of(own, "video_codec")),
        "Sound codec": _counted(codec or "none" for codec in of(own, "audio_codec")),
        "Container": _counted(name or "unknown" for name in of(own, "container")),
        "Turned by": _counted(f"{angle or 0} degrees" for angle in of(pictured, "rotation")),
        "Decoding errors in a clip": _counted(str(count) for count in columns["decode_errors"]),
    }


def _binned(seconds: Iterable[float]) -> dict[str, int]:
    names = [
        f"under {LENGTHS[0]:g} s",
        *(f"{low:g} to {high:g} s" for low, high in pairwise(LENGTHS)),
        f"{LENGTHS[-1]:g} s and more",
    ]
    counts = np.bincount(np.digitize(list(seconds), LENGTHS), minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


def _sheet(table: pa.Table, most: int) -> NDArray[np.int64]:
    """Clips of as many labels as there are, of different sources."""
    by_label: dict[str, list[int]] = {}
    seen = set()
    for row, values in enumerate(table.select(["source", "label", "labels"]).to_pylist()):
        if values["source"] not in seen:
            seen.add(values["source"])
            by_label.setdefault(_label(values), []).append(row)
    chosen: list[int] = []
    rounds = max(map(len, by_label.values()), default=0)
    for number in range(rounds):
        for rows in by_label.values():
            if number < len(rows) and len(chosen) < most:
                chosen.append(rows[number])
    return np.array(sorted(chosen, key=lambda row: _label(table.slice(row, 1).to_pylist()[0])))


def _rejects(dataset: ClipDataset) -> dict[str, list[ShownReject]]:
    """Some rejects of each reason, with the first frame where one can be decoded still."""
    by_reason: dict[str, list[ShownReject]] = {}
    decoder = DecoderProcess(max_memory_bytes=_THUMBNAIL_BYTES, timeout_seconds=_THUMBNAIL_SECONDS)
    try:
        for row in dataset.rejects():
            shown = by_reason.setdefault(row["reason"], [])
            if len(shown) < MAX_PER_REASON:
                frame = None
                if row["reason"] not in NO_PICTURE_REASONS and os.path.isfile(row["source"]):
                    frame = _first_frame(decoder, row["source"])
                shown.append(ShownReject(row["source"], row["message"], frame))
    finally:
        decoder.close()
    return by_reason


def _first_frame(decoder: DecoderProcess, path: str) -> NDArray[np.uint8] | None:
    try:
        segments = decoder.segments(
            path,
            segment_seconds=1.0,
            min_segment_seconds=0.01,
            frame_rate=8.0,
            short_side=128,
            sample_rate=16_000,
            max_pixels=8192 * 8192,
            max_seconds=1e9,
        )
        frames = next(iter(segments)).frames
    except (DecodeError, StopIteration):
        return None
    return None if frames is None else frames[0].copy()


def _leaks(alike: Sequence[Alike], held_out: Sequence[bool], ids: Sequence[str]) -> list[str]:
    """Clips trained on that are alike to one held out, themselves or by way of others alike.

    Of a clip with many copies not every two are compared (`near_duplicates`), so that a copy may be
    bound to the one held out by others alone.
    """
    leaders = _leaders(pair for pair in alike if pair.kind != SCENE)
    spoilt = {leader for clip, leader in leaders.items() if held_out[clip]}
    return sorted(
        ids[clip] for clip, leader in leaders.items() if leader in spoilt and not held_out[clip]
    )


def _duplicates(alike: Sequence[Alike], held_out: Sequence[bool], ids: Sequence[str]) -> list[str]:
    """All but the first of each group of clips trained on that are alike."""
    leaders = _leaders(
        pair
        for pair in alike
        if pair.kind != SCENE and not held_out[pair.first] and not held_out[pair.second]
    )
    return sorted(ids[clip] for clip, leader in leaders.items() if clip != leader)


def _leaders(pairs: Iterable[Alike]) -> dict[int, int]:
    """The first clip of its group for each clip that is alike to another one."""
    above: dict[int, int] = {}

    def find(clip: int) -> int:
        while above.setdefault(clip, clip) != clip:
            above[clip] = above[above[clip]]
            clip = above[clip]
        return clip

    for pair in pairs:
        first, second = sorted((find(pair.first), find(pair.second)))
        above[second] = first
    return {clip: find(clip) for clip in sorted(above)}
