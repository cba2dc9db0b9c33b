"""Settings of the job that registers encoders of published files."""

import math
from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from pipelines.config.base import JobConfig, Location, Name
from pipelines.config.promote import Alias
from pipelines.config.published import PublishedSettings


class ImportConfig(PublishedSettings, JobConfig):
    """`ray_jobs.import_checkpoint`: registers encoders of a published file."""

    name: Name = "import"
    """Name of the MLflow run."""
    file: Location
    """File of one encoder, or a whole checkpoint of the published training."""
    modality: Literal["video", "audio"] | None = None
    """Modality to take from a whole checkpoint. Default: both."""
    role: Literal["teacher", "student"] | None = None
    """Network to take from a whole checkpoint, by default the teacher. For a file of one encoder
    the role is only recorded, by default as the file's name says."""
    segment_seconds: PositiveFloat = 5.0
    """Embeds media in segments of this length, seconds."""
    min_segment_seconds: PositiveFloat = 1.1
    """Drops a shorter remainder of a source, seconds."""
    short_side: PositiveInt = 128
    """Resizes the shorter side of a frame to this first, pixels."""
    num_windows: PositiveInt = 2
    """Windows of a segment whose embeddings are averaged."""
    model_prefix: Name = "xkd"
    """Registered names are `<prefix>-video` and `<prefix>-audio`."""
    alias: Alias | None = None
    """Alias for the new versions. Default: none."""

    @model_validator(mode="after")
    def _same_length(self) -> "ImportConfig":
        if not math.isclose(self.video.clip_seconds, self.audio.clip_seconds):
            raise ValueError(
                f"video.num_frames / video.frame_rate ({self.video.clip_seconds:g} s) must equal "
                f"audio.num_samples / audio.sample_rate ({self.audio.clip_seconds:g} s)"
            )
        return self
