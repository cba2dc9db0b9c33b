"""Settings of evaluation: how frozen features are scored."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from pipelines.config.base import JobConfig, Location, Name, Place
from xkd_core.config import Config, PositiveFloats


class EvaluateSettings(Config):
    """How frozen features are scored."""

    train_splits: tuple[str, ...] = ("train",)
    test_splits: tuple[str, ...] = ("test", "val")
    """Splits scored on: the first of these that the dataset has."""
    num_windows: PositiveInt = 2
    """Windows of a segment whose features are averaged, evenly spread."""
    neighbors: PositiveInt = 5
    knn_temperature: PositiveFloat = 0.07
    linear_l2: PositiveFloats = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    """Candidates for the linear probe's penalty, chosen by cross-validation on the train split."""
    batch_size: PositiveInt = 32
    untrained_baseline: bool = True
    """Score the same network before training as well."""
    role: Literal["teacher", "student"] = "teacher"
    use_gpu: bool = False
    seed: NonNegativeInt = 0


class EvaluateConfig(EvaluateSettings, JobConfig):
    """`ray_jobs.evaluate`: how good the features of a checkpoint are."""

    name: Name = "evaluate"
    checkpoint: Place
    """A checkpoint, or the folder of a run, whose last checkpoint is taken."""
    dataset: Location
    output: Place
    """Folder for the scores, features and the report."""
