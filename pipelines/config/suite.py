"""Settings of a suite: one encoder, several evaluations, one card."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from pipelines.config.base import JobConfig, Location, Name
from pipelines.config.published import PublishedSettings
from pipelines.config.weights import WeightsList
from xkd_core.config import Config


class SuiteEntry(Config):
    """One evaluation of a suite."""

    config: str = Field(min_length=1)
    """A configuration of `evaluate`: its short name, or a YAML file."""
    name: Name | None = None
    """Name on the card and of its folder. Default: the configuration's."""
    dataset: Location | None = None
    """Clip dataset. Default: the configuration's."""
    lists: Location | None = None
    """Folder of the official lists. Default: the configuration's."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Other settings of the evaluation to replace."""


class SuiteConfig(JobConfig):
    """`ray_jobs.suite`: evaluates one encoder on several datasets and writes one card."""

    name: Name = "suite"
    """Name of the MLflow run."""
    checkpoint: Annotated[WeightsList, Field(min_length=1)]
    """What to score, as in `evaluate`."""
    against: WeightsList = ()
    """Another encoder to compare with, as in `evaluate`."""
    published: PublishedSettings = PublishedSettings()
    """What files of the published method do not record."""
    suite: Annotated[tuple[SuiteEntry, ...], Field(min_length=1)]
    """The evaluations, in the order of the card."""
    output: Location
    """Folder for the card, and for each evaluation's files in a folder of its name."""

    @model_validator(mode="after")
    def _names_differ(self) -> "SuiteConfig":
        names = [entry.name or entry.config for entry in self.suite]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"suite has {repeated[0]} more than once: give each a name")
        return self
