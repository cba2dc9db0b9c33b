"""Settings of the job that registers encoders of published files."""

import math
from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from pipelines.config.base import JobConfig, Name, Place
from pipelines.config.promote import Alias
from xkd_core.config import AudioConfig, VideoConfig


class ImportConfig(JobConfig):
    """`ray_jobs.import_checkpoint`: encoders of a published file enter the registry."""

    name: Name = "import"
    file: Place
    """A file of one encoder, or a whole checkpoint of the published training."""
    modality: Literal["video", "audio"] | None = None
    """Of a whole checkpoint, the modality to take: by default both."""
    role: Literal["teacher", "student"] | None = None
    """Of a whole checkpoint, the network to take: by default the teacher. Of a file of one encoder
    it is only recorded: by default what the name of the file says."""
    num_heads: PositiveInt | None = None
    """Attention heads, which no file says: by default one for each 64 of the width."""
    video: VideoConfig = VideoConfig()
    """The clips that a video encoder takes; the size of the picture follows from the file."""
    audio: AudioConfig = AudioConfig()
    segment_seconds: PositiveFloat = 5.0
    """Media are embedded segment by segment of this length."""
    min_segment_seconds: PositiveFloat = 1.1
    short_side: PositiveInt = 128
    """Pixels to which the shorter side of a frame is reduced first."""
    num_windows: PositiveInt = 2
    """Windows of a segment whose embeddings are averaged."""
    model_prefix: Name = "xkd"
    """Registered names are `<prefix>-video` and `<prefix>-audio`."""
    alias: Alias | None = None
    """Alias that the new versions get; by default none."""

    @model_validator(mode="after")
    def _same_length(self) -> "ImportConfig":
        if not math.isclose(self.video.clip_seconds, self.audio.clip_seconds):
            raise ValueError(
                f"video.num_frames / video.frame_rate ({self.video.clip_seconds:g} s) must equal "
                f"audio.num_samples / audio.sample_rate ({self.audio.clip_seconds:g} s)"
            )
        return self
