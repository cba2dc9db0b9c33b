"""Settings of the job that reviews a clip dataset."""

from pydantic import PositiveInt

from pipelines.config.base import JobConfig, Location
from xkd_core.config import Config


class DatasetSettings(Config):
    """How a clip dataset is reviewed."""

    against: tuple[Location, ...] = ()
    """Other clip datasets, such as those to evaluate on: training clips that resemble clips there
    count as leaks too."""
    train_splits: tuple[str, ...] = ("train",)
    """Splits to train on. Rows without a split always belong to them."""
    max_shown: PositiveInt = 24
    """Clips in the contact sheet, and the most in every other list."""


class DatasetConfig(DatasetSettings, JobConfig):
    """`ray_jobs.dataset`: a page about a clip dataset, and lists of clips to exclude."""

    dataset: Location
    """Folder of the clip dataset."""
    output: Location | None = None
    """Folder for the page and the lists. Default: `page` in the dataset's folder."""
