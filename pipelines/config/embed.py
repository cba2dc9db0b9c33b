"""Settings of the job that embeds media with a registered model."""

from pydantic import Field, PositiveInt

from pipelines.config.base import (
    DecoderSettings,
    JobConfig,
    LimitsSettings,
    Location,
    Name,
)


class EmbedConfig(JobConfig):
    """`ray_jobs.embed`: runs a registered model over media and writes embeddings."""

    name: Name = "embed"
    """Name of the MLflow run."""
    model: str
    """A registered model: `models:/xkd-video@champion`, `models:/xkd-audio/3`."""
    input: Location
    """Folder of media, a list, or a clip dataset."""
    output: Location
    """Folder for the embeddings."""
    batch_size: PositiveInt = Field(16, json_schema_extra={"may_change": True})
    """Clips that go through the encoder at once."""
    num_workers: PositiveInt | None = Field(None, json_schema_extra={"may_change": True})
    """Workers that run at a time. Default: one for each CPU of Ray."""
    limits: LimitsSettings = LimitsSettings()
    decoder: DecoderSettings = Field(DecoderSettings(), json_schema_extra={"may_change": True})
