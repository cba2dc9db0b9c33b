"""Settings of evaluation: how frozen features are scored."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipelines.config.base import Datasets, JobConfig, Location, Name, NamedOnce
from pipelines.config.ingest import PublishedDataset
from pipelines.config.published import PublishedSettings
from pipelines.config.weights import WeightsList
from xkd_core.config import Config, PositiveFloats

NUM_FOLDS = {"ucf101": 3, "hmdb51": 3, "esc50": 5}
"""Folds of the published datasets that have several."""

CheapMeasure = Literal["knn", "linear", "svm", "attentive", "layers", "retrieval"]
"""Measures of frozen features."""
Measure = Literal[CheapMeasure, "finetune"]
_AtLeastTwo = Annotated[int, Field(ge=2)]


class FineTuneSettings(Config):
    """How `finetune` trains an encoder; the defaults are published for UCF101."""

    epochs: PositiveInt = 100
    """Passes over the training clips."""
    batch_size: PositiveInt = 96
    """Clips of a step."""
    learning_rate: PositiveFloat = 5e-4
    """Of the head, after warm-up."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.45
    """Factor of the learning rate from each layer to the one below it."""
    weight_decay: NonNegativeFloat = 0.05
    """AdamW's, not of biases, norms, CLS and positions."""
    warmup_epochs: NonNegativeFloat = 5.0
    """Epochs in which the rate rises from 0."""
    final_rate: NonNegativeFloat = 2e-3
    """Rate at the end of the cosine, as a share of `learning_rate`; 1 keeps it constant."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of a label that goes to all classes; not with several labels a clip."""
    mixup: NonNegativeFloat = 0.6
    """Parameter of the Beta distribution of mixup; 0 for none."""
    cutmix: NonNegativeFloat = 0.5
    """The same of cutmix, of videos alone; half of the batches have one, half the other."""
    randaugment_operations: NonNegativeInt = 4
    """Operations of RandAugment on a clip, the same for all its frames; each is applied to half of
    the clips, as in timm. 0 for none."""
    randaugment_magnitude: Annotated[int, Field(ge=0, le=10)] = 7
    """Mean of their strength, 0 to 10 as in timm."""
    erasing: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """Share of the clips of which a box is filled with noise."""
    crop_area: tuple[PositiveFloat, PositiveFloat] = (0.2, 0.766)
    """Range of the area of a random crop."""
    flip: bool = True
    """Mirrors half of the videos."""
    volume: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Largest change of a sound's volume, as a share."""
    time_warp: NonNegativeInt = 20
    """Frames of a spectrogram by which a random one moves at most; 0 for none."""
    audio_crop: tuple[PositiveFloat, PositiveFloat] | None = (0.6, 1.5)
    """Range of height and width of a random crop of a spectrogram, as shares of it; None for
    none."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Dropout before the head."""
    score_every: PositiveInt = 10
    """Epochs between scores with `selection=test`, of which the best is reported too."""
    clips_gb: NonNegativeFloat = 4.0
    """Memory in GB for clips that are kept between epochs; others are read again."""

    @field_validator("crop_area")
    @classmethod
    def _is_a_share(cls, area: tuple[float, float]) -> tuple[float, float]:
        if not area[0] <= area[1] <= 1.0:
            raise ValueError(
                f"({area[0]:g}, {area[1]:g}) must be two shares of the frame, the smaller one first"
            )
        return area

    @field_validator("audio_crop")
    @classmethod
    def _is_ordered(cls, crop: tuple[float, float] | None) -> tuple[float, float] | None:
        if crop is not None and crop[0] > crop[1]:
            raise ValueError(f"({crop[0]:g}, {crop[1]:g}) must begin with the smaller number")
        return crop

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "FineTuneSettings":
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs ({self.warmup_epochs:g}) must not be above epochs ({self.epochs})"
            )
        return self


class EvaluateSettings(Config):
    """How frozen features are scored."""

    train_splits: Annotated[tuple[str, ...], NamedOnce] = ("train",)
    """Splits that give the neighbors and train the linear probe."""
    test_splits: Annotated[tuple[str, ...], NamedOnce] = ("test", "val")
    """Splits to score: the first of these that the dataset has."""
    num_windows: PositiveInt = 2
    """Windows of a segment, evenly spaced."""
    num_crops: Literal[1, 3] = 1
    """Square crops of each window: the central one, or three across the longer side. Needs clips
    that are not square, as ingest stores them; of a square clip there is one crop."""
    video_size: PositiveInt | None = None
    """Pixels of a crop. Default: the size that the encoder was trained at; for another one its
    position table is resized. Ingest with `short_side` at least as large."""
    average: Literal["features", "scores"] = "features"
    """`features`: a classifier sees the mean of the windows and crops of a clip. `scores`: it
    learns from each of them, and its probabilities (decision values of an SVM) are averaged.
    Measures of joined features and `attentive` keep one row a clip."""
    per: Literal["segment", "source"] = "segment"
    """What is right or wrong: a stored segment, or a whole source with all its segments, as
    published figures count."""
    selection: Literal["validation", "test"] = "validation"
    """Clips that choose a penalty, or the epoch of fine-tuning. `test` reports what the best choice
    on the test clips scores beside the honest score, as the published figures were chosen."""
    measures: Annotated[tuple[Measure, ...], Field(min_length=1), NamedOnce] = (
        "knn",
        "linear",
        "retrieval",
    )
    """What is measured: votes of neighbors, a linear probe, a linear SVM, an attentive probe, a
    linear probe of several layers, fine-tuning (all of labels), and retrieval between sound and
    picture."""
    fusion: Annotated[tuple[Literal["both", "late", "missing"], ...], NamedOnce] = ("both", "late")
    """How clips with picture and sound are scored by both: `both` concatenates the features, `late`
    averages the scores of the two modalities, `missing` takes the classifier of `both` where the
    picture or the sound of the test clips is missing. Empty for none."""
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
    finetune: FineTuneSettings = FineTuneSettings()
    retrieval_of: Literal["features", "heads"] = "features"
    """What retrieval compares. `features`: the features of both encoders in a common space, into
    which linear maps lead that are fitted to the pairs of the training clips, without labels.
    `heads`: the outputs of the projection heads, which checkpoints alone have."""
    retrieval_sizes: Annotated[tuple[_AtLeastTwo, ...], NamedOnce] = (100, 1000)
    """Sizes of galleries that retrieval is measured in besides all clips, if there are more."""
    retrieval_max_clips: _AtLeastTwo = 4096
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

    @model_validator(mode="after")
    def _possible(self) -> "EvaluateSettings":
        if "missing" in self.fusion and "both" not in self.fusion:
            raise ValueError("fusion (missing) must come with both, whose classifier it takes")
        if self.per == "source" and "attentive" in self.measures:
            raise ValueError("measures (attentive) must come with per=segment: its tokens are kept")
        both = next((name for name in self.test_splits if name in self.train_splits), None)
        if both is not None:
            raise ValueError(
                f"test_splits ({both}) must not be in train_splits "
                f"({', '.join(self.train_splits)}): clips that a classifier learns from say "
                "nothing of others"
            )
        return self


class OfficialSettings(Config):
    """The published split that figures are of."""

    dataset: PublishedDataset
    """The published dataset."""
    lists: Location | None = None
    """Folder with the official lists of a dataset of several folds (UCF101, HMDB51, ESC-50). They
    give splits and labels of the clips by file name, whatever the ingest was told, so one clip
    dataset serves all folds. Default: the splits of the clip dataset."""
    folds: Annotated[tuple[PositiveInt, ...], NamedOnce] = ()
    """Folds whose figures are averaged. Default: all."""

    @model_validator(mode="after")
    def _has_folds(self) -> "OfficialSettings":
        count = NUM_FOLDS.get(self.dataset, 1)
        if self.lists is not None and count == 1:
            raise ValueError(
                f"lists ({self.lists}) is for datasets of several folds: {', '.join(NUM_FOLDS)}"
            )
        if self.folds and self.lists is None:
            raise ValueError(f"folds {self.folds} must come with lists")
        if self.folds and max(self.folds) > count:
            raise ValueError(f"folds {self.folds} must be at most {count} for {self.dataset}")
        return self


class PublishedFigure(Config):
    """A figure of a paper, which the card shows beside the measured one."""

    subject: str
    """`video`, `audio`, `both`, or a direction of retrieval."""
    measure: Measure
    """The measure that comes nearest to the published one."""
    value: float
    """Percent."""
    source: str
    """Paper and table."""


class EvaluateConfig(EvaluateSettings, JobConfig):
    """`ray_jobs.evaluate`: scores the features of an encoder."""

    name: Name = "evaluate"
    """Name of the MLflow run."""
    checkpoint: Annotated[WeightsList, Field(min_length=1)]
    """What to score: a checkpoint, the folder of a run (its last checkpoint), a registered version
    (`models:/xkd-video@champion`) or its files, or a file of the published method. A list takes
    each modality from its own: `[models:/xkd-video@champion, models:/xkd-audio@champion]`."""
    against: WeightsList = ()
    """Another encoder to compare with, given as `checkpoint` is: adds its scores, and the
    difference with a paired interval."""
    published: PublishedSettings = PublishedSettings()
    """What files of the published method do not record."""
    dataset: Datasets
    """Folder of the clip dataset, or a list of folders whose clips count as one dataset."""
    dataset_id: str | None = None
    """Id of the clip dataset that figures are compared on; those of another one are marked."""
    official: OfficialSettings | None = None
    """Marks figures of an incomplete official split. Default: none is expected."""
    paper: tuple[PublishedFigure, ...] = ()
    """Published figures to show beside."""
    output: Location
    """Folder for scores and features."""
    cache: Location | None = None
    """Folder of features by encoder, dataset and views, which evaluations may share. Default:
    `features` in `output`; evaluations of a suite share the suite's."""
    num_workers: PositiveInt | None = None
    """Workers that embed at a time, each with a CPU, or a GPU with `use_gpu`. Default: one process
    for up to 4,096 clips, else one worker for each CPU or GPU of Ray."""
