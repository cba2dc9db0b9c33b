"""Settings that stand in for what files of the published method do not record."""

from pydantic import PositiveInt

from xkd_core.config import AudioConfig, Config, VideoConfig


class PublishedSettings(Config):
    """What a file of the published method does not record about its encoders."""

    num_heads: PositiveInt | None = None
    """Attention heads, which no file records. Default: one for each 64 of the width."""
    video: VideoConfig = VideoConfig()
    """Clips that a video encoder takes. The size of the picture follows from the file."""
    audio: AudioConfig = AudioConfig()
