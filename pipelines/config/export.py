"""Settings of the job that exports a clip dataset."""

from typing import Literal

from pydantic import Field, PositiveInt

from pipelines.config.base import JobConfig, Location


class ExportConfig(JobConfig):
    """`ray_jobs.export`: a clip dataset in a format of other tools."""

    dataset: Location
    """Folder of the clip dataset."""
    output: Location
    """A new or empty folder, or its URI."""
    format: Literal["webdataset"] = "webdataset"
    """`webdataset` writes tar files that WebDataset reads."""
    splits: tuple[str, ...] = ()
    """Splits to export. Default: all clips, also those without a split."""
    max_shard_bytes: PositiveInt = Field(1_000_000_000, ge=10_000)
    """Size from which a tar file is followed by the next one, bytes."""
