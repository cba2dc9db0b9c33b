"""Settings of every stage and every job; the schema of the files in `conf/`.

A stage's `...Settings` say how it works; the job's `...Config` adds what it reads and writes, so
that the main job can hold all stages' settings and fill in the places itself. Paths that are not
absolute are taken from `XKD_HOME`, or from the working directory without it.
"""

import math
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from pipelines.media.reasons import REASONS
from pipelines.paths import absolute_location, absolute_place, is_uri
from xkd_core.config import AudioConfig, Config, MethodConfig, PositiveFloats, VideoConfig

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
Place = Annotated[str, Field(min_length=1), AfterValidator(absolute_place)]
"""A path, made absolute when the settings are read."""
Location = Annotated[str, Field(min_length=1), AfterValidator(absolute_location)]
"""A path, or a URI that pyarrow or fsspec opens."""


def _not_a_version(alias: str) -> str:
    if alias == "latest" or (alias[0] == "v" and alias[1:].isdigit()) or alias.isdigit():
        raise ValueError(f"alias ({alias}) must not be 'latest' or a version number")
    return alias


Alias = Annotated[Name, AfterValidator(_not_a_version)]


class TrackingConfig(Config):
    """Where MLflow keeps what a job measures."""

    uri: str | None = None
    """Tracking server or `sqlite:///FILE`; by default MLFLOW_TRACKING_URI, else an sqlite file
    `mlflow.db` in XKD_HOME or the working directory."""
    experiment: str = Field("xkd", min_length=1)


class RayConfig(Config):
    """Which Ray a job runs on."""

    address: str | None = None
    """A running cluster (`auto`, `host:port`, `ray://host:port`); by default RAY_ADDRESS, else a
    Ray of this process's own."""
    num_cpus: PositiveInt | None = None
    """CPUs of a Ray of its own; by default all there are."""
    object_store_bytes: PositiveInt = 500_000_000
    """Shared memory of a Ray of its own."""


class JobConfig(Config):
    """What every job has."""

    tracking: TrackingConfig = TrackingConfig()
    ray: RayConfig = RayConfig()


class MadeClipsConfig(Config):
    """The clips that are made on the spot when no input is given."""

    num_clips: Annotated[int, Field(ge=16)] = 300
    """Whole clips over all classes; two broken files come on top."""
    heldout_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    seed: NonNegativeInt = 0


class LimitsConfig(Config):
    """What one source may cost; above it the source goes to the rejects."""

    max_bytes: PositiveInt = 50_000_000_000
    max_pixels: PositiveInt = 8192 * 4320
    """Of one frame."""
    max_seconds: PositiveFloat = 6 * 3600.0
    """Length of a source."""
    max_decode_seconds: PositiveFloat = 600.0
    """Wall time without a segment coming out of the decoder."""
    max_memory_bytes: PositiveInt = 4_000_000_000
    """Address space of a decoder beyond what it has when idle."""
    max_spool_bytes: PositiveInt = 20_000_000_000
    """Disk on each machine that remote files may take together while they are decoded, in TMPDIR;
    a file that is larger goes to the rejects."""
    max_hashed_remote_bytes: NonNegativeInt = 64_000_000
    """A remote file up to this size is read once more, for the hash of its bytes; of a larger one
    the store's version tag stands for them."""


class IngestSettings(Config):
    """How sources become segments."""

    labels: Literal["auto", "folder", "none"] = "auto"
    """For a folder: the folder a file lies in is its label (`auto`: if there is more than one
    such folder). A list brings its own labels."""
    dataset: (
        Literal[
            "ucf101",
            "hmdb51",
            "kinetics400",
            "kinetics_sound",
            "audioset",
            "vggsound",
            "esc50",
            "fsd50k",
        ]
        | None
    ) = None
    """The input is the folder of this published dataset: its official lists give labels and
    splits, and name files that are missing."""
    fold: PositiveInt | None = None
    """Which official split of a dataset that has several: UCF101 and HMDB51 three, ESC-50 five (the
    fold that is held out). By default the first."""
    segment_seconds: PositiveFloat = 5.0
    min_segment_seconds: PositiveFloat = 1.1
    """A shorter rest of a source is dropped, a shorter source is rejected. Training loops pictures
    and pads sound that are shorter than a clip; the published code never uses them, as at 4.0."""
    min_source_seconds: PositiveFloat | None = None
    """A source as long as that is kept though all of it is shorter than `min_segment_seconds`: test
    splits have clips of a fraction of a second, and evaluation loops and pads as training does."""
    frame_rate: PositiveFloat = 8.0
    short_side: PositiveInt = 128
    """Pixels of the shorter side of a stored frame; sources that are smaller keep their size."""
    sample_rate: PositiveInt = 16_000
    heldout_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of the sources put into the split `test` where the input names no splits; by content,
    so it never changes for a file."""
    limits: LimitsConfig = LimitsConfig()
    sources_per_shard: PositiveInt = 32
    rows_per_group: PositiveInt = 16
    """Rows of a Parquet row group, which is what a reader reads at once."""
    num_workers: PositiveInt | None = None
    """Decoders at a time; by default one for each CPU that Ray has."""
    max_reject_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """The job fails if a larger share of the sources is rejected."""
    retry_rejects: tuple[str, ...] = ()
    """Reasons of rejects to decode once more, such as `decoder_crashed` on a machine that had too
    little memory. What a limit rejected is decoded again by itself when the limit is raised."""
    keep_removed: bool = False
    """Keep what sources gave that are in the input no more, for media that is deleted once it is
    ingested; by default it is removed."""

    @field_validator("retry_rejects")
    @classmethod
    def _known_reasons(cls, reasons: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(reasons) - REASONS.keys()):
            raise ValueError(f"({', '.join(unknown)}) must be reasons: {', '.join(REASONS)}")
        return reasons

    @model_validator(mode="after")
    def _fold_of_a_dataset(self) -> "IngestSettings":
        if self.fold is not None and self.dataset is None:
            raise ValueError(f"fold ({self.fold}) must come with dataset")
        return self


class IngestConfig(IngestSettings, JobConfig):
    """`ray_jobs.ingest`: a folder or list of media becomes a clip dataset."""

    name: Name = "ingest"
    input: Location | None = None
    """Folder of media, or a list (.csv, .tsv, .jsonl, .parquet) with the columns path, label or
    labels, split, group, start and end (all but path optional; paths may be URIs); local, `s3://`,
    or of a web server (a list). Without it clips are made on the spot."""
    output: Place
    """Folder of the clip dataset."""
    made: MadeClipsConfig = MadeClipsConfig()

    @model_validator(mode="after")
    def _input_of_a_dataset(self) -> "IngestConfig":
        if self.dataset and self.input is None:
            raise ValueError(f"dataset ({self.dataset}) must come with input, its folder")
        return self


class DatasetSettings(Config):
    """How a clip dataset is looked through."""

    against: tuple[Location, ...] = ()
    """Other clip datasets, such as those that are evaluated on: clips trained on that are alike to
    clips there are leaks as well."""
    train_splits: tuple[str, ...] = ("train",)
    """Splits trained on; rows without a split always are."""
    max_shown: PositiveInt = 24
    """Clips in the contact sheet, and at most in each of the other lists."""


class DatasetConfig(DatasetSettings, JobConfig):
    """`ray_jobs.dataset`: a page about a clip dataset, and the clips to leave out of training."""

    dataset: Location
    """Folder of the clip dataset."""
    output: Place | None = None
    """Folder of the page and the lists; by default `page` in the dataset's folder."""

    @model_validator(mode="after")
    def _place_for_the_page(self) -> "DatasetConfig":
        if self.output is None and is_uri(self.dataset):
            raise ValueError(
                f"output must be given, for dataset ({self.dataset}) is no folder here"
            )
        return self


class KnnSettings(Config):
    """How often the teachers are scored while they train, and on what."""

    dataset: Location | None = None
    """Clip dataset with labels, whose split `train` holds the neighbors and whose split `val`, or
    else `test`, is scored; by default the one that is trained on."""
    every_epochs: PositiveFloat = 1.0
    """Epochs between two scores; the first comes before training, the last after it."""
    max_clips: PositiveInt = 1000
    """Labelled clips of each of the two splits at most, evenly spread over it."""


class HealthSettings(Config):
    """What is measured of a training's health beside what a step computes anyway."""

    knn: KnnSettings | None = None
    """Score the frozen teachers by nearest neighbors as they train (`health/video/knn`,
    `health/audio/knn`); what is trained does not change by it. Rank 0 scores, others wait."""


class PretrainSettings(MethodConfig):
    """The method, and how it is trained."""

    epochs: PositiveFloat
    batch_size: PositiveInt
    """Clips of one step over all workers."""
    splits: tuple[str, ...] = ("train",)
    """Splits trained on; rows without a split always are."""
    exclude: Place | None = None
    """A file of clip ids, one a line, that are left out, such as `leaks.txt` of `xkd dataset`."""
    seed: NonNegativeInt = 0
    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """A number, or the least and the most: training then goes on with the workers there are, fewer
    after a node is lost and more when one comes; `batch_size` stays that of all of them."""
    use_gpu: bool = False
    cpus_per_worker: PositiveFloat | None = None
    """By default all CPUs of Ray shared out among the workers, node by node, or 1 with a GPU."""
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: each worker has all weights; `fsdp`: they are spread over the workers."""
    accumulation_steps: PositiveInt = 1
    """Parts in which a worker takes its share of a batch; the alignment is then the mean over
    parts, all else is as for the whole."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` is bfloat16 autocast on a GPU that has it, else float32."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    shuffle_window: PositiveInt = 16
    """Row groups whose rows are shuffled together."""
    log_every: PositiveInt = 10
    """Steps between two records of the losses."""
    checkpoint_every: PositiveInt = 200
    """Steps between two checkpoints; the last step always leaves one."""
    checkpoints_kept: PositiveInt = 2
    max_failures: NonNegativeInt = 2
    """Times that the worker group is started again after a worker died."""
    max_seconds: PositiveFloat | None = None
    """Seconds after which one call leaves a checkpoint and ends with exit code 75; the same
    command goes on."""
    health: HealthSettings = HealthSettings()

    @property
    def worker_range(self) -> tuple[int, int]:
        """The least and the most workers."""
        if isinstance(self.num_workers, int):
            return self.num_workers, self.num_workers
        return self.num_workers

    @model_validator(mode="after")
    def _batch_divides(self) -> "PretrainSettings":
        least, most = self.worker_range
        if least > most:
            raise ValueError(f"num_workers ({least}, {most}) must begin with the smaller number")
        for num_workers in range(least, most + 1):
            self._check_parts(num_workers)
        return self

    def _check_parts(self, num_workers: int) -> None:
        parts = num_workers * self.accumulation_steps
        of_what = f"num_workers ({num_workers})"
        if self.accumulation_steps > 1:
            of_what += f" times accumulation_steps ({self.accumulation_steps})"
        if self.batch_size % parts:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of {of_what}")
        if self.batch_size // parts < 2:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be at least 2 for each of {of_what}"
            )

    @model_validator(mode="after")
    def _one_worker_can_score(self) -> "PretrainSettings":
        if self.health.knn and self.parallelism == "fsdp" and self.worker_range[1] > 1:
            raise ValueError(
                "parallelism (fsdp) must be ddp with health.knn: one worker scores, and has but a "
                "part of the weights"
            )
        return self

    @model_validator(mode="after")
    def _schedules_fit(self) -> "PretrainSettings":
        if self.optimizer.warmup_epochs > self.epochs:
            raise ValueError(
                f"optimizer.warmup_epochs ({self.optimizer.warmup_epochs:g}) must not be above "
                f"epochs ({self.epochs:g})"
            )
        return self


class PretrainConfig(PretrainSettings, JobConfig):
    """`ray_jobs.pretrain`: a clip dataset becomes encoders."""

    name: Name
    """Name of the run; a run that exists goes on from its last checkpoint."""
    dataset: Location
    """Folder of the clip dataset."""
    output: Place
    """Folder that gets one folder of checkpoints for each name."""
    resume: Place | None = None
    """A checkpoint of another run to begin from, at its step and so at its place in the order of
    clips: networks, clips and all that orders them must be the same, and there must be steps left
    to do. Once this run has a checkpoint of its own it goes on from its newest."""


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


class ImportConfig(JobConfig):
    """`ray_jobs.import_checkpoint`: encoders of a published file enter the registry."""

    name: Name = "import"
    file: Place
    """A file of one encoder, or a whole checkpoint of the published training."""
    modality: Literal["video", "audio"] | None = None
    """Of a whole checkpoint, the modality to take: by default both."""
    role: Literal["teacher", "student"] | None = None
    """Of a whole checkpoint, the network to take: by default the teacher. Of a file of one encoder
    it is only recorded: by default what the name of the file says."""
    num_heads: PositiveInt | None = None
    """Attention heads, which no file says: by default one for each 64 of the width."""
    video: VideoConfig = VideoConfig()
    """The clips that a video encoder takes; the size of the picture follows from the file."""
    audio: AudioConfig = AudioConfig()
    segment_seconds: PositiveFloat = 5.0
    """Media are embedded segment by segment of this length."""
    min_segment_seconds: PositiveFloat = 1.1
    short_side: PositiveInt = 128
    """Pixels to which the shorter side of a frame is reduced first."""
    num_windows: PositiveInt = 2
    """Windows of a segment whose embeddings are averaged."""
    model_prefix: Name = "xkd"
    """Registered names are `<prefix>-video` and `<prefix>-audio`."""
    alias: Alias | None = None
    """Alias that the new versions get; by default none."""

    @model_validator(mode="after")
    def _same_length(self) -> "ImportConfig":
        if not math.isclose(self.video.clip_seconds, self.audio.clip_seconds):
            raise ValueError(
                f"video.num_frames / video.frame_rate ({self.video.clip_seconds:g} s) must equal "
                f"audio.num_samples / audio.sample_rate ({self.audio.clip_seconds:g} s)"
            )
        return self


class EmbedConfig(JobConfig):
    """`ray_jobs.embed`: a registered model over any media becomes a Parquet of embeddings."""

    name: Name = "embed"
    model: str
    """Of the registry: `models:/xkd-video@champion`, `models:/xkd-audio/3`."""
    input: Location
    """Folder of media, a list, or a clip dataset."""
    output: Place
    """Folder of the embeddings."""
    batch_size: PositiveInt = 16
    """Clips that go through the encoder at once."""
    num_workers: PositiveInt | None = None
    """By default one for each CPU that Ray has."""
    limits: LimitsConfig = LimitsConfig()


class RunConfig(JobConfig):
    """`ray_jobs.run`: the main job, from media to registered encoders and a report."""

    name: Name
    """Name of the run; a run that exists goes on where it stopped."""
    input: Location | None = None
    """As for `ingest`: without it clips are made on the spot."""
    output: Place
    """Folder that gets one folder for each name."""
    made: MadeClipsConfig = MadeClipsConfig()
    ingest: IngestSettings = IngestSettings()
    pretrain: PretrainSettings
    evaluate: EvaluateSettings = EvaluateSettings()
    promote: PromoteSettings = PromoteSettings()

    @model_validator(mode="after")
    def _stages_fit(self) -> "RunConfig":
        problem = clip_mismatch(
            self.pretrain,
            frame_rate=self.ingest.frame_rate,
            sample_rate=self.ingest.sample_rate,
        )
        if problem:
            raise ValueError(problem)
        if self.ingest.dataset and self.input is None:
            raise ValueError(
                f"ingest.dataset ({self.ingest.dataset}) must come with input, its folder"
            )
        if self.evaluate.role != self.promote.role:
            raise ValueError(
                f"promote.role ({self.promote.role}) must equal "
                f"evaluate.role ({self.evaluate.role}): what is registered is what was scored"
            )
        return self


def clip_mismatch(method: MethodConfig, *, frame_rate: float, sample_rate: int) -> str | None:
    """Says why clips stored at these rates do not fit the method, or None if they do."""
    video, audio = method.model.video, method.model.audio
    if video.frame_rate != frame_rate:
        return (
            f"model.video.frame_rate ({video.frame_rate:g}) must equal "
            f"the clips' frame_rate ({frame_rate:g})"
        )
    if audio.sample_rate != sample_rate:
        return (
            f"model.audio.sample_rate ({audio.sample_rate}) must equal "
            f"the clips' sample_rate ({sample_rate})"
        )
    return None
