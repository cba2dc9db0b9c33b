"""Settings of promotion: how encoders are registered."""

from typing import Annotated, Literal

from pydantic import AfterValidator

from pipelines.config.base import JobConfig, LocalPath, Name
from pipelines.config.evaluate import Measure
from xkd_core.config import Config


def _not_a_version(alias: str) -> str:
    if alias == "latest" or (alias[0] == "v" and alias[1:].isdigit()) or alias.isdigit():
        raise ValueError(f"alias ({alias}) must not be 'latest' or a version number")
    return alias


Alias = Annotated[Name, AfterValidator(_not_a_version)]


class PromoteSettings(Config):
    """How encoders are registered, and when the alias moves."""

    model_prefix: Name = "xkd"
    """Registered names are `<prefix>-video` and `<prefix>-audio`."""
    alias: Alias = "champion"
    """Alias that the better version holds."""
    metric: Measure = "linear"
    """Score that versions are compared by, measured on the same clips; with `retrieval`, the mean
    recall@5 of both directions."""
    rule: Literal["better", "not_worse"] = "better"
    """When the alias moves, by the 95 % interval of new minus present, paired by clip:
    `better` if all of it is above 0, `not_worse` unless all of it is below 0."""
    role: Literal["teacher", "student"] = "teacher"
    """Which network to register."""


class PromoteConfig(PromoteSettings, JobConfig):
    """`ray_jobs.promote`: registers the encoders of a checkpoint; better ones get the alias."""

    name: Name = "promote"
    """Name of the MLflow run."""
    checkpoint: LocalPath
    """A checkpoint, or the folder of a run, whose last checkpoint is taken."""
    scores: LocalPath | None = None
    """`scores.json` of an evaluation of this checkpoint. Without it nothing is compared, and the
    alias moves only if no version holds it."""
