"""The Ray actor that ingests units, from sources to shards.

The actor uses one decoder process for all its units. A source never raises: if it cannot be
decoded, it becomes a row of the rejects. A source that fails partway leaves no clips. The actor
drops its rows, and rewrites the shard if some of them are already in the file.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config.ingest import IngestSettings
from pipelines.dataset.frame_encoding import encode_frames, shard_schema
from pipelines.dataset.schema import CLIPS, CLIPS_FOLDER, REJECTS, REJECTS_FOLDER, clip_id
from pipelines.dataset.shards import ShardWriter
from pipelines.files import write_failure
from pipelines.ingest.unit import Unit, UnitSource
from pipelines.ingest.unit_runner import UnitOutcome
from pipelines.media.container import DecodeError
from pipelines.media.decoder.messages import OUTSIDE_REASONS
from pipelines.media.decoder.process import DecoderProcess
from pipelines.media.decoder.sandbox import SandboxError
from pipelines.media.decoder.template import DecoderStartError
from pipelines.media.segments import Segment
from pipelines.sources.spool import Spool
from pipelines.storage import path_of

_CUT_SLACK_SECONDS = 1.0
"""Tolerance for the duration of a file cut to a stretch at key frames, in seconds."""


class UnitIngester:
    """Writes the shards of units, and yields one small row for each source."""

    def __init__(self, output: str, settings: dict[str, Any], scratch: str | None = None) -> None:
        self._output = path_of(output)
        self._scratch = None if scratch is None else path_of(scratch)
        self.settings = IngestSettings.model_validate(settings)
        limits = self.settings.limits
        self.decoder = DecoderProcess(
            max_memory_bytes=limits.max_memory_bytes,
            timeout_seconds=limits.max_decode_seconds,
            timeout_ratio=limits.max_decode_ratio,
            formats=limits.formats,
            sandbox=self.settings.decoder.sandbox,
        )
        self.spool = Spool(max_bytes=limits.max_spool_bytes)

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Ingests a unit. The rows report progress, or the error in `failed`."""
        unit = Unit.from_json(row["unit"])
        failed: dict[str, DecodeError | None] = {}
        num_reported = 0
        try:
            while True:
                attempt = _Attempt(self, unit, failed)
                for number, outcome in enumerate(attempt.run()):
                    if number >= num_reported:
                        num_reported += 1
                        yield asdict(replace(outcome, unit=unit.name))
                if attempt.is_complete:
                    return
        except (SandboxError, DecoderStartError) as error:
            yield asdict(UnitOutcome(unit.name, failed=f"cannot be made: {error}"))
        except OSError as error:
            why = f"cannot be written: {write_failure(error)}"
            yield asdict(UnitOutcome(unit.name, failed=why))

    def close(self) -> None:
        """Stops the decoder."""
        self.decoder.close()

    def shard(self, part: str, name: str, schema: pa.Schema, rows_per_group: int) -> ShardWriter:
        """Opens a shard of a unit for writing."""
        path = self._output / part / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        return ShardWriter(path, schema, rows_per_group=rows_per_group, scratch=self._scratch)


class _Attempt:
    """One pass over a unit. `failed` holds the sources that the next attempt must skip.

    The value is None for a source that failed for an external reason and gets a retry.
    """

    def __init__(
        self, ingester: UnitIngester, unit: Unit, failed: dict[str, DecodeError | None]
    ) -> None:
        self._ingester, self._unit = ingester, unit
        self._settings = ingester.settings
        self._failed = failed
        self._rejects: list[dict[str, Any]] = []
        self.is_complete = False

    def run(self) -> Iterator[UnitOutcome]:
        """Decodes the sources and commits the shards, unless a new attempt is needed."""
        clips = self._ingester.shard(
            CLIPS_FOLDER,
            self._unit.name,
            shard_schema(CLIPS, self._settings.clips.encoding),
            self._settings.rows_per_group,
        )
        try:
            for source in self._unit.sources:
                outcome, is_spoilt = self._ingest(source, clips)
                if is_spoilt:
                    return
                yield outcome
            if self._rejects:
                self._write_rejects()
            clips.commit()
            self.is_complete = True
        finally:
            if not self.is_complete:
                clips.discard()

    def _ingest(self, source: UnitSource, clips: ShardWriter) -> tuple[UnitOutcome, bool]:
        """Adds the rows of a source. Also returns whether rejected rows are in the file."""
        if source.reason is not None:
            return self._reject(source, source.reason, source.message), False
        if (earlier := self._failed.get(source.path)) is not None:
            return self._reject(source, earlier.reason, earlier.message), False
        num_clips = num_waiting = 0
        seconds = 0.0
        is_flushed = False
        try:
            for segment in self._segments(source):
                num_clips += 1
                num_waiting += 1
                seconds += segment.duration_seconds
                if clips.add(clip_row(source, segment, self._settings)):
                    num_waiting, is_flushed = 0, True
        except DecodeError as error:
            clips.drop_last(num_waiting)
            if error.reason in OUTSIDE_REASONS and source.path not in self._failed:
                self._failed[source.path] = None
                return (UnitOutcome(), True) if is_flushed else self._ingest(source, clips)
            self._failed[source.path] = error
            return self._reject(source, error.reason, error.message), is_flushed
        return UnitOutcome(clips=num_clips, seconds=seconds), False

    def _segments(self, source: UnitSource) -> Iterator[Segment]:
        """Yields the segments in the stretch of a local or remote source."""
        copy = self._ingester.spool.local_copy(source.path, source.source_hash, source.byte_size)
        with copy as path:
            segments = self._ingester.decoder.segments(path, **self._decode_settings())
            yield from in_stretch(source, segments)

    def _decode_settings(self) -> dict[str, float]:
        settings = self._settings
        return {
            "segment_seconds": settings.segment_seconds,
            "min_segment_seconds": settings.min_segment_seconds,
            "min_source_seconds": settings.min_source_seconds or settings.min_segment_seconds,
            "frame_rate": settings.frame_rate,
            "short_side": settings.short_side,
            "sample_rate": settings.sample_rate,
            "max_pixels": settings.limits.max_pixels,
            "max_seconds": settings.limits.max_seconds,
            "max_damaged_fraction": settings.limits.max_damaged_fraction,
        }

    def _reject(self, source: UnitSource, reason: str, message: str) -> UnitOutcome:
        self._rejects.append(reject_row(source, reason, message))
        return UnitOutcome(reason=reason)

    def _write_rejects(self) -> None:
        writer = self._ingester.shard(REJECTS_FOLDER, self._unit.name, REJECTS, len(self._rejects))
        try:
            for row in self._rejects:
                writer.add(row)
            writer.commit()
        except BaseException:
            writer.discard()
            raise


def in_stretch(source: UnitSource, segments: Iterable[Segment]) -> Iterator[Segment]:
    """Yields the segments in the stretch of their source.

    Raises:
        DecodeError: If the stretch holds no segment.
    """
    num_segments = 0
    for segment in segments:
        if _is_in_stretch(source, segment):
            num_segments += 1
            yield segment
    if not num_segments:
        stretch = f"{source.start_seconds or 0:g} to {source.end_seconds or math.inf:g} s"
        raise DecodeError("too_short", f"no segment lies in the stretch {stretch}")


def _is_in_stretch(source: UnitSource, segment: Segment) -> bool:
    """Whether the middle of a segment is in the stretch, or the file is already cut to it.

    A file as long as the stretch is cut, because a whole file would reach the end of the stretch.
    A shorter file that ends before the stretch begins is also cut: its video ended early. A shorter
    file in which the stretch begins is whole.
    """
    start = 0.0 if source.start_seconds is None else source.start_seconds
    end = math.inf if source.end_seconds is None else source.end_seconds
    known, most = segment.info.duration_seconds, end - start
    if 0 < known <= most + _CUT_SLACK_SECONDS and end < math.inf:
        is_shorter = known < most - _CUT_SLACK_SECONDS
        if not is_shorter or known <= start:
            return True
    return start <= segment.start_seconds + segment.duration_seconds / 2 < end


def clip_row(source: UnitSource, segment: Segment, settings: IngestSettings) -> dict[str, Any]:
    """Returns the row of a segment."""
    assert source.source_hash is not None
    frames, waveform, info = segment.frames, segment.waveform, segment.info
    stored = settings.clips
    num_frames, height, width = (0, 0, 0) if frames is None else frames.shape[:3]
    return {
        "clip_id": clip_id(source.source_hash, segment.start_seconds),
        "source": source.uri,
        "source_hash": source.source_hash,
        "start_seconds": segment.start_seconds,
        "duration_seconds": segment.duration_seconds,
        "frames": None
        if frames is None
        else encode_frames(frames, stored.encoding, stored.chosen_quality, settings.frame_rate),
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "frame_rate": settings.frame_rate,
        "waveform": _raw(waveform),
        "num_samples": 0 if waveform is None else len(waveform),
        "sample_rate": settings.sample_rate,
        "has_audio": waveform is not None,
        "label": source.label,
        "labels": source.all_labels,
        "split": source.split,
        "group": source.group,
        "stretch_start_seconds": source.start_seconds,
        "stretch_end_seconds": source.end_seconds,
        "container": info.container,
        "video_codec": info.video_codec,
        "audio_codec": info.audio_codec,
        "native_width": info.native_width,
        "native_height": info.native_height,
        "native_rate": info.native_rate,
        "rotation": info.rotation,
        "stream_offset_seconds": info.stream_offset_seconds,
        "decode_errors": segment.decode_errors,
        "is_mirrored": info.is_mirrored,
        "declares_picture": info.declares_picture,
        "declares_sound": info.declares_sound,
        **asdict(segment.repairs),
    }


def reject_row(source: UnitSource, reason: str, message: str) -> dict[str, Any]:
    """Returns the row of a rejected source."""
    return {
        "source": source.uri,
        "source_hash": source.source_hash,
        "byte_size": source.byte_size,
        "reason": reason,
        "message": message,
        "label": source.label,
        "split": source.split,
        "stretch_start_seconds": source.start_seconds,
        "stretch_end_seconds": source.end_seconds,
    }


def _raw(array: NDArray[np.int16] | None) -> pa.Buffer | None:
    # pyarrow 25 never releases a memoryview.
    return None if array is None else pa.py_buffer(np.ascontiguousarray(array))
