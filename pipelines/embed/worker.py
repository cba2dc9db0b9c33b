"""The Ray actor that embeds units, from media or stored clips to shards.

The actor loads the model once and decodes in a separate process. A source never raises: if it
cannot be decoded or lacks the modality of the model, it becomes a row of the rejects.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config.base import DecoderSettings, LimitsSettings
from pipelines.dataset.row_tensors import read_frames, read_waveform
from pipelines.dataset.schema import REJECTS, REJECTS_FOLDER, STRETCH, clip_id
from pipelines.dataset.shards import ShardWriter, read_groups
from pipelines.files import write_failure
from pipelines.ingest.unit import Unit, UnitSource
from pipelines.ingest.unit_runner import UnitOutcome
from pipelines.ingest.worker import in_stretch, reject_row
from pipelines.media.container import DecodeError
from pipelines.media.decoder.messages import OUTSIDE_REASONS
from pipelines.media.decoder.process import DecoderProcess
from pipelines.media.decoder.sandbox import SandboxError
from pipelines.media.decoder.template import DecoderStartError
from pipelines.media.reasons import ENCRYPTED
from pipelines.media.segments import Segment
from pipelines.models.encoder_inputs import ARRAY_COLUMN, RATE_COLUMN
from pipelines.registry.pull import fetch
from pipelines.registry.uri import EncoderVersion
from pipelines.sources.spool import Spool
from pipelines.storage import path_of

EMBEDDINGS_FOLDER = "embeddings"
ROWS_PER_GROUP = 1024
EMBEDDINGS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_hash", pa.string(), nullable=False),
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("start_seconds", pa.float64(), nullable=False),
        pa.field("duration_seconds", pa.float64(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32()), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        *STRETCH,
    ],
    metadata={"xkd.format_version": "1"},
)
"""Schema of embeddings, with one row per segment."""

Array = NDArray[Any]
CLIP_COLUMNS = ("source", "source_hash", "clip_id", "start_seconds", "duration_seconds")


@dataclass(frozen=True)
class SegmentToEmbed:
    """A segment to embed."""

    source: str
    source_hash: str
    clip_id: str
    start_seconds: float
    duration_seconds: float
    array: Array
    """Frames or waveform of the segment."""
    stretch: tuple[float | None, float | None] = (None, None)
    """Start and end of the stretch of its source, in seconds."""


class UnitEmbedder:
    """Writes the shards of units, and yields one small row for each source."""

    def __init__(
        self,
        output: str,
        scratch: str,
        tracking_uri: str,
        version: EncoderVersion,
        limits: dict[str, Any],
        decoder: dict[str, Any],
        batch_size: int,
    ) -> None:
        # Models of this project hold no pickles. MLflow refuses models that do.
        os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
        mlflow.set_tracking_uri(tracking_uri)
        # Verified where it is run: its code is read from this copy as long as the worker lives.
        self._files = TemporaryDirectory(prefix="xkd-model-")
        folder = fetch(version, tracking_uri, Path(self._files.name))
        self._model = mlflow.pyfunc.load_model(str(folder))
        self._output, self._scratch = path_of(output), path_of(scratch)
        self._version = version
        self._batch_size = batch_size
        self._limits = LimitsSettings.model_validate(limits)
        confined = DecoderSettings.model_validate(decoder)
        self._decoder = DecoderProcess(
            max_memory_bytes=self._limits.max_memory_bytes,
            timeout_seconds=self._limits.max_decode_seconds,
            timeout_ratio=self._limits.max_decode_ratio,
            formats=self._limits.formats,
            sandbox=confined.sandbox,
        )
        self._spool = Spool(max_bytes=self._limits.max_spool_bytes)

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Embeds a unit. The rows report progress, or the error in `failed`."""
        try:
            for outcome in self._outcomes(row):
                yield asdict(replace(outcome, unit=row["name"]))
        except (SandboxError, DecoderStartError) as error:
            yield asdict(UnitOutcome(row["name"], failed=f"cannot be made: {error}"))
        except OSError as error:
            failed = f"cannot be written: {write_failure(error)}"
            yield asdict(UnitOutcome(row["name"], failed=failed))

    def _outcomes(self, row: dict[str, Any]) -> Iterator[UnitOutcome]:
        work = _Work()
        if row["shard"]:
            yield from self._stored(row["shard"], work)
        else:
            for source in Unit.from_json(row["unit"]).sources:
                yield self._source(source, work)
        self._embed(work)
        self._write(f"{row['name']}.parquet", work)

    def _source(self, source: UnitSource, work: "_Work", *, is_again: bool = False) -> UnitOutcome:
        """Decodes and embeds one source. A failure drops all its rows."""
        if source.reason is not None:
            return self._reject(work, source, source.reason, source.message)
        assert source.source_hash is not None
        num_rows, num_clips, is_encrypted = len(work.rows), 0, False
        try:
            for segment in self._segments(source):
                array = segment.frames if self._version.modality == "video" else segment.waveform
                codecs = segment.info.video_codec, segment.info.audio_codec
                is_encrypted = codecs[self._version.modality != "video"] == ENCRYPTED
                if array is None:
                    continue
                num_clips += 1
                start, seconds = segment.start_seconds, segment.duration_seconds
                name = clip_id(source.source_hash, start)
                clip = SegmentToEmbed(
                    source.uri, source.source_hash, name, start, seconds, array, source.stretch
                )
                self._add(clip, work)
        except DecodeError as error:
            # Rows of this source come after the rows of earlier sources.
            work.waiting = [clip for clip in work.waiting if clip.source != source.uri]
            work.rows[num_rows:] = [
                row for row in work.rows[num_rows:] if row["source"] != source.uri
            ]
            if error.reason in OUTSIDE_REASONS and not is_again:
                return self._source(source, work, is_again=True)
            return self._reject(work, source, error.reason, error.message)
        if not num_clips:
            reason, message = self._missing()
            return self._reject(work, source, ENCRYPTED if is_encrypted else reason, message)
        return UnitOutcome(clips=num_clips)

    def _segments(self, source: UnitSource) -> Iterator[Segment]:
        copy = self._spool.local_copy(source.path, source.source_hash, source.byte_size)
        with copy as path:
            segments = self._decoder.segments(path, **self._decode_settings())
            yield from in_stretch(source, segments)

    def _decode_settings(self) -> dict[str, float]:
        clips = self._version.clips
        return {
            "segment_seconds": clips.segment_seconds,
            "min_segment_seconds": clips.min_segment_seconds,
            "frame_rate": self._version.frame_rate,
            "short_side": clips.short_side,
            "sample_rate": self._version.sample_rate,
            "max_pixels": self._limits.max_pixels,
            "max_damaged_fraction": self._limits.max_damaged_fraction,
            "max_seconds": self._limits.max_seconds,
        }

    def _stored(self, shard: str, work: "_Work") -> Iterator[UnitOutcome]:
        """Embeds the clips of a shard, one row group at a time."""
        sources: dict[str, int] = {}
        hashes: dict[str, str] = {}
        for table in read_groups(shard, _stored_columns(self._version.modality)):
            small = table.drop_columns([ARRAY_COLUMN[self._version.modality]])
            for number, row in enumerate(small.to_pylist()):
                hashes[row["source"]] = row["source_hash"]
                sources.setdefault(row["source"], 0)
                array = _stored_array(table, number, self._version.modality, shard)
                if array is None:
                    continue
                sources[row["source"]] += 1
                self._add(
                    SegmentToEmbed(**{name: row[name] for name in CLIP_COLUMNS}, array=array), work
                )
        for uri, num_clips in sources.items():
            if num_clips:
                yield UnitOutcome(clips=num_clips)
            else:
                source = UnitSource(uri, uri, hashes[uri], None, None, None, None)
                yield self._reject(work, source, *self._missing())

    def _missing(self) -> tuple[str, str]:
        if self._version.modality == "video":
            return "no_picture", "the video encoder needs a picture"
        return "no_sound", "the audio encoder needs sound"

    def _reject(self, work: "_Work", source: UnitSource, reason: str, message: str) -> UnitOutcome:
        work.rejects.append(reject_row(source, reason, message))
        return UnitOutcome(reason=reason)

    def _add(self, clip: SegmentToEmbed, work: "_Work") -> None:
        work.waiting.append(clip)
        if len(work.waiting) == self._batch_size:
            self._embed(work)

    def _embed(self, work: "_Work") -> None:
        """Runs the model on the waiting clips."""
        if not work.waiting:
            return
        clips, work.waiting = work.waiting, []
        for clip, embedding in zip(clips, self._predict(clips), strict=True):
            work.rows.append(
                {
                    "source": clip.source,
                    "source_hash": clip.source_hash,
                    "clip_id": clip.clip_id,
                    "start_seconds": clip.start_seconds,
                    "duration_seconds": clip.duration_seconds,
                    "embedding": embedding,
                    "model": self._version.uri,
                    "model_version": str(self._version.version),
                    "stretch_start_seconds": clip.stretch[0],
                    "stretch_end_seconds": clip.stretch[1],
                }
            )

    def _predict(self, clips: Sequence[SegmentToEmbed]) -> NDArray[np.float32]:
        modality = self._version.modality
        video = modality == "video"
        rate = self._version.frame_rate if video else float(self._version.sample_rate)
        inputs = pd.DataFrame(
            {
                ARRAY_COLUMN[modality]: pd.Series([clip.array for clip in clips], dtype=object),
                RATE_COLUMN[modality]: rate,
            }
        )
        windows = self._batch_size * self._version.clips.num_windows
        embeddings: NDArray[np.float32] = self._model.predict(inputs, {"batch_size": windows})
        return embeddings

    def _write(self, name: str, work: "_Work") -> None:
        """Writes the shards, the rejects first."""
        if work.rejects:
            self._write_shard(REJECTS_FOLDER, name, REJECTS, work.rejects)
        self._write_shard(EMBEDDINGS_FOLDER, name, EMBEDDINGS, work.rows)

    def _write_shard(
        self, part: str, name: str, schema: pa.Schema, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        path = self._output / part / name
        path.parent.mkdir(exist_ok=True)
        writer = ShardWriter(path, schema, rows_per_group=ROWS_PER_GROUP, scratch=self._scratch)
        try:
            for row in rows:
                writer.add(row)
            writer.commit()
        except BaseException:
            writer.discard()
            raise


@dataclass
class _Work:
    """Pending clips and results of a unit."""

    waiting: list[SegmentToEmbed] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)


def _stored_columns(modality: str) -> list[str]:
    if modality == "video":
        return [*CLIP_COLUMNS, "frames", "num_frames", "height", "width"]
    return [*CLIP_COLUMNS, "waveform"]


def _stored_array(table: pa.Table, row: int, modality: str, shard: str) -> Array | None:
    if modality == "audio":
        return read_waveform(table, row)
    return read_frames(table, row, shard=shard)
