"""Settings of promotion: how encoders are registered."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from pipelines.config.base import JobConfig, Location, Name, NamedOnce
from pipelines.config.evaluate import Measure
from xkd_core.config import Config


def _not_a_version(alias: str) -> str:
    if alias == "latest" or (alias[0] == "v" and alias[1:].isdigit()) or alias.isdigit():
        raise ValueError(f"({alias}) must not be 'latest' or a version number")
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
    compared_on: Literal["own", "both", "late"] = "own"
    """Features that `metric` is of: `own` of each encoder's modality, or of both encoders together,
    joined or as the mean of their scores."""
    modalities: Annotated[tuple[Literal["video", "audio"], ...], Field(min_length=1), NamedOnce] = (
        "video",
        "audio",
    )
    """Encoders to register."""
    rule: Literal["better", "not_worse"] = "better"
    """When the alias moves, by the 95 % interval of new minus present, paired by clip:
    `better` if all of it is above 0, `not_worse` unless all of it is below 0."""
    role: Literal["teacher", "student"] = "teacher"
    """Which network to register."""

    @model_validator(mode="after")
    def _is_measured(self) -> "PromoteSettings":
        if self.metric in ("attentive", "finetune") and self.compared_on == "both":
            raise ValueError(
                f"compared_on (both) must be own or late with metric={self.metric}, which is not "
                "measured on joined features"
            )
        if self.metric == "retrieval" and self.compared_on != "own":
            raise ValueError(
                f"compared_on ({self.compared_on}) must be own with metric=retrieval, which takes "
                "both encoders as it is"
            )
        return self


class PromoteConfig(PromoteSettings, JobConfig):
    """`ray_jobs.promote`: registers the encoders of a checkpoint; better ones get the alias."""

    name: Name = "promote"
    """Name of the MLflow run."""
    checkpoint: Location
    """A checkpoint, or the folder of a run, whose last checkpoint is taken."""
    scores: Location | None = None
    """`scores.json` of an evaluation of this checkpoint. Without it nothing is compared, and the
    alias moves only if no version holds it."""


class DemoteConfig(JobConfig):
    """`ray_jobs.demote`: gives an alias back to an earlier version."""

    name: Name = "demote"
    """Name of the MLflow run."""
    model: Name
    """Registered model, such as `xkd-video`."""
    to: PositiveInt | None = None
    """Version that gets the alias. Default: the one that had it before."""
    alias: Alias = "champion"
    """Alias that moves."""
    reason: str = Field("", max_length=500)
    """Why, for the tags of both versions."""
