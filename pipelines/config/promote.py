"""Settings of promotion: how encoders enter the registry."""

from typing import Annotated, Literal

from pydantic import AfterValidator

from pipelines.config.base import JobConfig, Name, Place
from xkd_core.config import Config


def _not_a_version(alias: str) -> str:
    if alias == "latest" or (alias[0] == "v" and alias[1:].isdigit()) or alias.isdigit():
        raise ValueError(f"alias ({alias}) must not be 'latest' or a version number")
    return alias


Alias = Annotated[Name, AfterValidator(_not_a_version)]


class PromoteSettings(Config):
    """How encoders enter the registry."""

    model_prefix: Name = "xkd"
    """Registered names are `<prefix>-video` and `<prefix>-audio`."""
    alias: Alias = "champion"
    metric: Literal["knn", "linear"] = "linear"
    """The alias moves only if the new version beats the present one on this metric, measured on
    the same dataset."""
    role: Literal["teacher", "student"] = "teacher"


class PromoteConfig(PromoteSettings, JobConfig):
    """`ray_jobs.promote`: registers the encoders of a checkpoint; better ones get the alias."""

    name: Name = "promote"
    checkpoint: Place
    scores: Place | None = None
    """`scores.json` of an evaluation of this checkpoint; without it nothing is compared and the
    alias moves only where there is none yet."""
