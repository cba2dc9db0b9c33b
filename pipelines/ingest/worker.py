"""One unit of an ingest, from sources to shards, inside a Ray actor.

The actor keeps one decoder process for all its units. Nothing is raised because of a source: what
cannot be decoded becomes a row of the rejects. A source that fails half-way leaves no clip: its
rows are taken back, and if some are in the file already the shard is written anew without it.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config.ingest import IngestSettings
from pipelines.dataset.schema import CLIPS, CLIPS_FOLDER, REJECTS, REJECTS_FOLDER, clip_id
from pipelines.dataset.shards import ShardWriter
from pipelines.files import write_failure
from pipelines.ingest.plan import Unit, UnitSource
from pipelines.ingest.unit_graph import UnitOutcome
from pipelines.media.container import DecodeError
from pipelines.media.decoder_messages import OUTSIDE_REASONS
from pipelines.media.decoder_process import DecoderProcess
from pipelines.media.decoder_template import DecoderStartError
from pipelines.media.sandbox import SandboxError
from pipelines.media.segments import Segment
from pipelines.sources.spool import Spool

_CUT_SLACK_SECONDS = 1.0
"""How much longer or shorter than a stretch a file is that was cut to it, at its key frames."""


class UnitIngester:
    """Writes the shards of units; a generator of one small row for each source."""

    def __init__(self, output: str, settings: dict[str, Any], scratch: str | None = None) -> None:
        self._output = Path(output)
        self._scratch = None if scratch is None else Path(scratch)
        self.settings = IngestSettings.model_validate(settings)
        limits = self.settings.limits
        self.decoder = DecoderProcess(
            max_memory_bytes=limits.max_memory_bytes,
            timeout_seconds=limits.max_decode_seconds,
            formats=limits.formats,
            sandbox=self.settings.decoder.sandbox,
            process_per_file=self.settings.decoder.process_per_file,
        )
        self.spool = Spool(max_bytes=limits.max_spool_bytes)

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Ingests a unit; the rows say how far it is, and `failed` why it cannot go on."""
        unit = Unit.from_json(row["unit"])
        failed: dict[str, DecodeError | None] = {}
        told = 0
        try:
            while True:
                attempt = _Attempt(self, unit, failed)
                for number, outcome in enumerate(attempt.run()):
                    if number >= told:
                        told += 1
                        yield asdict(replace(outcome, unit=unit.name))
                if attempt.is_complete:
                    return
        except (SandboxError, DecoderStartError) as error:
            yield asdict(UnitOutcome(unit.name, failed=f"cannot be made: {error}"))
        except OSError as error:
            why = f"cannot be written: {write_failure(error)}"
            yield asdict(UnitOutcome(unit.name, failed=why))

    def close(self) -> None:
        """Ends the decoder."""
        self.decoder.close()

    def shard(self, part: str, name: str, schema: pa.Schema, rows_per_group: int) -> ShardWriter:
        """Begins a shard of a unit."""
        place = self._output / part / f"{name}.parquet"
        return ShardWriter(place, schema, rows_per_group=rows_per_group, scratch=self._scratch)


class _Attempt:
    """Goes through a unit once; `failed` remembers what the next attempt must leave out.

    It has None for a source that failed for a reason outside of it and gets a second chance.
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
        """Decodes the sources and commits the shards, unless it has to be done again."""
        clips = self._ingester.shard(
            CLIPS_FOLDER, self._unit.name, CLIPS, self._settings.rows_per_group
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
        """Adds a source's rows; also says whether a part of a rejected source is in the file."""
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
        """The segments of a source, remote or not, that lie in the stretch it stands for."""
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
    """Gives the segments that lie in the stretch that their source stands for.

    Raises:
        DecodeError: If there is none.
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
    """Whether the middle of a segment is in the stretch, or the file has been cut to it already.

    It has if it is as long as the stretch, wherever that begins: whole, it would have to reach the
    stretch's end. It has as well if it is shorter and ends before the stretch begins, as cut files
    do whose video ended early. A shorter file in which the stretch begins is whole: all before the
    stretch is something else.
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
    """Makes the row of a segment."""
    assert source.source_hash is not None
    frames, waveform, info = segment.frames, segment.waveform, segment.info
    num_frames, height, width = (0, 0, 0) if frames is None else frames.shape[:3]
    return {
        "clip_id": clip_id(source.source_hash, segment.start_seconds),
        "source": source.uri,
        "source_hash": source.source_hash,
        "start_seconds": segment.start_seconds,
        "duration_seconds": segment.duration_seconds,
        "frames": _raw(frames),
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
    """Makes the row of a source that gave no clips."""
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


def _raw(array: NDArray[np.uint8] | NDArray[np.int16] | None) -> pa.Buffer | None:
    # Not a memoryview: pyarrow 25 never lets go of one.
    return None if array is None else pa.py_buffer(np.ascontiguousarray(array))
