"""Settings of evaluation: how frozen features are scored."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from pipelines.config.base import JobConfig, LocalPath, Location, Name
from xkd_core.config import Config, PositiveFloats

Measure = Literal["knn", "linear", "svm", "attentive", "layers", "retrieval"]


class EvaluateSettings(Config):
    """How frozen features are scored."""

    train_splits: tuple[str, ...] = ("train",)
    """Splits that give the neighbors and train the linear probe."""
    test_splits: tuple[str, ...] = ("test", "val")
    """Splits to score: the first of these that the dataset has."""
    num_windows: PositiveInt = 2
    """Windows of a segment, evenly spaced, whose features are averaged."""
    measures: Annotated[tuple[Measure, ...], Field(min_length=1)] = ("knn", "linear", "retrieval")
    """What is measured: votes of neighbors, a linear probe, a linear SVM, an attentive probe, a
    linear probe of several layers (all of labels), and retrieval between sound and picture."""
    fusion: tuple[Literal["both", "late"], ...] = ("both", "late")
    """How clips with picture and sound are scored by both: `both` concatenates the features, `late`
    averages the scores of the two modalities. Empty for neither."""
    neighbors: PositiveInt = 5
    """Neighbors that vote."""
    knn_temperature: PositiveFloat = 0.07
    """Temperature of the votes by similarity, as in DINO."""
    linear_l2: PositiveFloats = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    """Candidate penalties of the linear probe; cross-validation on the train split picks one,
    with whole sources in its folds."""
    max_solver_gb: PositiveFloat = 4.0
    """Memory in GB that scikit-learn's solvers may take, 16 bytes for each number of the training
    features. Larger features train a linear layer on batches, on the GPU with `use_gpu`."""
    svm_c: PositiveFloats = (1e-3, 1e-2, 1e-1, 1.0)
    """Candidates for C of the linear SVM, picked as those of the probe."""
    num_layers: PositiveInt = 4
    """Last blocks of the encoder whose features `layers` concatenates."""
    attentive_steps: PositiveInt = 500
    """Training steps of the attentive probe, with `batch_size` clips each."""
    max_tokens_gb: PositiveFloat = 8.0
    """Memory in GB that the tokens of the attentive probe may take; beyond, the job refuses."""
    retrieval_sizes: tuple[PositiveInt, ...] = (100, 1000)
    """Sizes of galleries that retrieval is measured in besides all clips, if there are more."""
    retrieval_max_clips: PositiveInt = 4096
    """Clips that retrieval uses at most, one of each source and evenly spaced."""
    batch_size: PositiveInt = 32
    """Clips that go through the encoder at once."""
    untrained_baseline: bool = True
    """Scores the network before training too."""
    role: Literal["teacher", "student"] = "teacher"
    """Which network to score."""
    use_gpu: bool = False
    """Computes features on a GPU."""
    seed: NonNegativeInt = 0
    """Seed of the folds."""


class EvaluateConfig(EvaluateSettings, JobConfig):
    """`ray_jobs.evaluate`: scores the features of a checkpoint."""

    name: Name = "evaluate"
    """Name of the MLflow run."""
    checkpoint: LocalPath
    """A checkpoint, or the folder of a run, whose last checkpoint is taken."""
    dataset: Location
    """Folder of the clip dataset."""
    output: LocalPath
    """Folder for scores and features."""
