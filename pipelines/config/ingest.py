"""Settings of ingest: how media are turned into a clip dataset."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipelines.config.base import (
    DecoderSettings,
    JobConfig,
    LimitsSettings,
    Location,
    Name,
)
from pipelines.media.reasons import REASONS
from xkd_core.config import Config

PublishedDataset = Literal[
    "ucf101",
    "hmdb51",
    "kinetics400",
    "kinetics_sound",
    "audioset",
    "vggsound",
    "esc50",
    "fsd50k",
]
_QUALITIES = {"raw": (0, 0, 0), "jpeg": (1, 95, 90), "h264": (0, 51, 20)}
"""Lowest, highest and default quality of each encoding."""


class SyntheticSettings(Config):
    """Synthetic clips, which replace a missing input."""

    num_clips: Annotated[int, Field(ge=16)] = 300
    """Intact clips over all classes; two broken files are added."""
    heldout_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    """Share of the clips in the split `test`."""
    seed: NonNegativeInt = 0
    """Seed of the scenes."""


class ClipsSettings(Config):
    """How the frames of clips are stored."""

    encoding: Literal["raw", "jpeg", "h264"] = "raw"
    """`raw`: pixels as decoded. `jpeg`: a JPEG for each frame, about a tenth of the size. `h264`: a
    stream with a key frame every four frames, about a twenty-fifth. Both lose detail and cost CPU
    when they are read (table in the README of the dataset), so the default is `raw`."""
    quality: int | None = None
    """Quality of `jpeg`, 1 to 95, larger is better, default 90; or constant rate factor of `h264`,
    0 to 51, smaller is better, default 20."""

    @property
    def chosen_quality(self) -> int:
        """The quality, or the default of the encoding; 0 for raw frames."""
        return self.quality if self.quality is not None else _QUALITIES[self.encoding][2]

    @model_validator(mode="after")
    def _quality_fits(self) -> "ClipsSettings":
        if self.quality is None:
            return self
        if self.encoding == "raw":
            raise ValueError(
                f"quality ({self.quality}) must come with encoding=jpeg or encoding=h264"
            )
        least, most, _ = _QUALITIES[self.encoding]
        if not least <= self.quality <= most:
            raise ValueError(
                f"quality ({self.quality}) of {self.encoding} must be {least} to {most}"
            )
        return self


class IngestSettings(Config):
    """How sources become segments."""

    labels: Literal["auto", "folder", "none"] = "auto"
    """For a folder: whether the folder that a file lies in is its label. `auto`: if there is more
    than one such folder. A list brings its own labels."""
    dataset: PublishedDataset | None = None
    """Reads `input` as the folder of this published dataset: its official lists give labels and
    splits, and name missing files."""
    fold: PositiveInt | None = None
    """Official split of a dataset that has several: UCF101 and HMDB51 have three, ESC-50 has five
    (the fold that is held out). Default: the first."""
    segment_seconds: PositiveFloat = 5.0
    """Cuts sources into segments of this length, seconds. 5 s holds every clip of the paper."""
    min_segment_seconds: PositiveFloat = 1.1
    """Drops the remainder of a source if it is shorter, and rejects a source that is shorter as a
    whole. Training loops pictures and pads sound of segments shorter than a clip; the published
    code never uses them, as a value of 4.0 does. Seconds."""
    min_source_seconds: PositiveFloat | None = None
    """Keeps sources of at least this length even if they are shorter than `min_segment_seconds`:
    test splits of published datasets have clips of a fraction of a second. Seconds."""
    frame_rate: PositiveFloat = 8.0
    """Frames stored for each second."""
    short_side: PositiveInt = 128
    """Pixels of the shorter side of a stored frame; smaller sources keep their size. The
    published preprocessing uses 112; 128 keeps more detail for crops."""
    sample_rate: PositiveInt = 16_000
    """Audio samples stored for each second."""
    heldout_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of the sources in the split `test` if the input names no splits. Drawn by content,
    so a file always lies in the same split."""
    limits: LimitsSettings = LimitsSettings()
    decoder: DecoderSettings = Field(DecoderSettings(), json_schema_extra={"may_change": True})
    clips: ClipsSettings = ClipsSettings()
    sources_per_shard: PositiveInt = 32
    """Sources whose clips share a Parquet file."""
    rows_per_group: PositiveInt = 16
    """Rows of a Parquet row group, the unit of reading."""
    num_workers: PositiveInt | None = Field(None, json_schema_extra={"may_change": True})
    """Decoders that run at a time. Default: one for each CPU of Ray."""
    max_reject_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        1.0, json_schema_extra={"may_change": True}
    )
    """Fails the job if a larger share of the sources is rejected."""
    retry_rejects: tuple[str, ...] = Field((), json_schema_extra={"may_change": True})
    """Decodes sources with these reject reasons again, such as `decoder_crashed` after a machine
    had too little memory. Raising a limit decodes what it rejected without this."""
    keep_removed: bool = Field(False, json_schema_extra={"may_change": True})
    """Keeps the clips of sources that are no longer in the input, for media that is deleted once it
    is ingested. By default they are removed."""

    @field_validator("retry_rejects")
    @classmethod
    def _known_reasons(cls, reasons: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(reasons) - REASONS.keys()):
            raise ValueError(f"({', '.join(unknown)}) must be reasons: {', '.join(REASONS)}")
        return reasons

    @model_validator(mode="after")
    def _fold_of_a_dataset(self) -> "IngestSettings":
        if self.fold is not None and self.dataset is None:
            raise ValueError(f"fold ({self.fold}) must come with dataset")
        return self


class IngestConfig(IngestSettings, JobConfig):
    """`ray_jobs.ingest`: turns a folder or list of media into a clip dataset."""

    name: Name = "ingest"
    """Name of the MLflow run."""
    input: Location | None = None
    """Folder of media, or a list (.csv, .tsv, .jsonl, .parquet) with the columns path, label or
    labels, split, group, start and end, of which only path is required. Local, in a bucket
    (`s3://`), or on a web server (lists only). Default: synthetic clips."""
    output: Location
    """Folder of the clip dataset."""
    synthetic: SyntheticSettings = SyntheticSettings()

    @model_validator(mode="after")
    def _input_of_a_dataset(self) -> "IngestConfig":
        if self.dataset and self.input is None:
            raise ValueError(f"dataset ({self.dataset}) must come with input, its folder")
        return self
