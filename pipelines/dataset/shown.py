"""The clips, pairs and rejects that a dataset's page shows as pictures."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.dataset.alike import Alike
from pipelines.dataset.clip_dataset import Clip, ClipDataset
from pipelines.dataset.leaks import NamedPair
from pipelines.dataset.review_tables import COLUMNS, label_text
from pipelines.dataset.scan import Scan, scan_dataset
from pipelines.media.container import DecodeError
from pipelines.media.decoder.process import DecoderProcess
from pipelines.media.decoder.template import DecoderStartError
from pipelines.media.windows import evenly_spaced
from pipelines.progress import OnProgress

MAX_PER_REASON = 6
NO_PICTURE_REASONS = frozenset({"unreadable", "empty_file", "not_media", "no_streams"})
_THUMBNAIL_SECONDS = 10.0
_THUMBNAIL_BYTES = 2_000_000_000


@dataclass(frozen=True)
class ShownClip:
    """A clip on the page."""

    clip_id: str
    title: str
    label: str
    split: str
    frames: NDArray[np.uint8] | None
    waveform: NDArray[np.int16] | None
    note: str = ""


@dataclass(frozen=True)
class ShownPair:
    """A pair of near-duplicates on the page."""

    kind: str
    agreement: float
    is_leak: bool
    first: ShownClip
    second: ShownClip


@dataclass(frozen=True)
class ShownReject:
    """A rejected source, with its first frame if it decodes."""

    path: str
    message: str
    frame: NDArray[np.uint8] | None


@dataclass(frozen=True)
class AllClips:
    """The clips of the dataset, followed by those of the datasets that it is compared with."""

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
    ) -> "AllClips":
        """Scans the other datasets and concatenates all clips."""
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
            [label_text(row) for row in joined.select(["label", "labels"]).to_pylist()],
            [split or "" for split in joined["split"].to_pylist()],
            joined["start_seconds"].to_pylist(),
            [codes for part in scans for codes in part.frames],
            [codes for part in scans for codes in part.sounds],
        )

    def source_numbers(self) -> list[int]:
        """Numbers the sources; a source in two datasets gets two numbers, so its clips compare."""
        numbers: dict[tuple[int, str], int] = {}
        return [
            numbers.setdefault((int(owner), source), len(numbers))
            for owner, source in zip(self.owners, self.sources, strict=True)
        ]

    def held_out(self, train_splits: Sequence[str]) -> list[bool]:
        """Returns which clips are outside training: in another split or another dataset."""
        return [
            bool(owner) or split not in (*train_splits, "")
            for owner, split in zip(self.owners, self.splits, strict=True)
        ]

    def split_of(self, clip: int) -> str:
        """Returns the split of a clip, with the path of its dataset if it is another one."""
        split = self.splits[clip] or "no split"
        owner = int(self.owners[clip])
        return f"{split} of {self.datasets[owner].path}" if owner else split

    def named(self, pair: Alike, is_leak: bool) -> NamedPair:
        """Returns a pair with the ids, sources and splits of its clips."""
        first, second = (
            (self.ids[clip], self.sources[clip], self.split_of(clip))
            for clip in (pair.first, pair.second)
        )
        return NamedPair(pair.kind, pair.agreement, is_leak, *first, *second)


class Thumbnails:
    """Reads the clips for the page."""

    def __init__(self, every: AllClips, most: int) -> None:
        self._every, self._most = every, most

    def clips(self, rows: NDArray[np.int64], notes: Sequence[str] | None) -> list[ShownClip]:
        """Reads evenly spaced rows of the dataset, whose clips come first in `AllClips`."""
        chosen = evenly_spaced(len(rows), self._most)
        return [self._clip(int(rows[i]), notes[i] if notes else "") for i in chosen]

    def pairs(self, alike: Sequence[Alike], is_leak: Sequence[bool]) -> list[ShownPair]:
        """Reads the first pairs, leaks before others and the most certain first."""
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
            every.split_of(clip),
            None if read.frames is None else read.frames.copy(),
            None if read.waveform is None else read.waveform.copy(),
            note,
        )


def shown_rejects(dataset: ClipDataset) -> dict[str, list[ShownReject]]:
    """Returns some rejects of each reason, with the first frame if it decodes."""
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
    except (DecodeError, DecoderStartError, StopIteration):
        return None
    return None if frames is None else frames[0].copy()
