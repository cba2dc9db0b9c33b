"""Settings of ingest: how media becomes a clip dataset."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipelines.config.base import DecoderSettings, JobConfig, LimitsSettings, Location, Name, Place
from pipelines.media.reasons import REASONS
from xkd_core.config import Config


class SyntheticSettings(Config):
    """The clips that are made on the spot when no input is given."""

    num_clips: Annotated[int, Field(ge=16)] = 300
    """Whole clips over all classes; two broken files come on top."""
    heldout_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    seed: NonNegativeInt = 0


class IngestSettings(Config):
    """How sources become segments."""

    labels: Literal["auto", "folder", "none"] = "auto"
    """For a folder: the folder a file lies in is its label (`auto`: if there is more than one
    such folder). A list brings its own labels."""
    dataset: (
        Literal[
            "ucf101",
            "hmdb51",
            "kinetics400",
            "kinetics_sound",
            "audioset",
            "vggsound",
            "esc50",
            "fsd50k",
        ]
        | None
    ) = None
    """The input is the folder of this published dataset: its official lists give labels and
    splits, and name files that are missing."""
    fold: PositiveInt | None = None
    """Which official split of a dataset that has several: UCF101 and HMDB51 three, ESC-50 five (the
    fold that is held out). By default the first."""
    segment_seconds: PositiveFloat = 5.0
    min_segment_seconds: PositiveFloat = 1.1
    """A shorter rest of a source is dropped, a shorter source is rejected. Training loops pictures
    and pads sound that are shorter than a clip; the published code never uses them, as at 4.0."""
    min_source_seconds: PositiveFloat | None = None
    """A source as long as that is kept though all of it is shorter than `min_segment_seconds`: test
    splits have clips of a fraction of a second, and evaluation loops and pads as training does."""
    frame_rate: PositiveFloat = 8.0
    short_side: PositiveInt = 128
    """Pixels of the shorter side of a stored frame; sources that are smaller keep their size. The
    published preprocessing has 112; 128 leaves more pixels to crops of a part of the frame."""
    sample_rate: PositiveInt = 16_000
    heldout_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of the sources put into the split `test` where the input names no splits; by content,
    so it never changes for a file."""
    limits: LimitsSettings = LimitsSettings()
    decoder: DecoderSettings = Field(DecoderSettings(), json_schema_extra={"may_change": True})
    sources_per_shard: PositiveInt = 32
    rows_per_group: PositiveInt = 16
    """Rows of a Parquet row group, which is what a reader reads at once."""
    num_workers: PositiveInt | None = Field(None, json_schema_extra={"may_change": True})
    """Decoders at a time; by default one for each CPU that Ray has."""
    max_reject_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        1.0, json_schema_extra={"may_change": True}
    )
    """The job fails if a larger share of the sources is rejected."""
    retry_rejects: tuple[str, ...] = Field((), json_schema_extra={"may_change": True})
    """Reasons of rejects to decode once more, such as `decoder_crashed` on a machine that had too
    little memory. What a limit rejected is decoded again by itself when the limit is raised."""
    keep_removed: bool = Field(False, json_schema_extra={"may_change": True})
    """Keep what sources gave that are in the input no more, for media that is deleted once it is
    ingested; by default it is removed."""

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
    """`ray_jobs.ingest`: a folder or list of media becomes a clip dataset."""

    name: Name = "ingest"
    input: Location | None = None
    """Folder of media, or a list (.csv, .tsv, .jsonl, .parquet) with the columns path, label or
    labels, split, group, start and end (all but path optional; paths may be URIs); local, `s3://`,
    or of a web server (a list). Without it clips are made on the spot."""
    output: Place
    """Folder of the clip dataset."""
    synthetic: SyntheticSettings = SyntheticSettings()

    @model_validator(mode="after")
    def _input_of_a_dataset(self) -> "IngestConfig":
        if self.dataset and self.input is None:
            raise ValueError(f"dataset ({self.dataset}) must come with input, its folder")
        return self
