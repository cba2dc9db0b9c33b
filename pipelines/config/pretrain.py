"""Settings of pretraining: the method, and how it is trained."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipelines.config.base import Datasets, JobConfig, Location, Name, NamedOnce
from pipelines.config.evaluate import CheapMeasure
from pipelines.config.init import InitSettings
from xkd_core.config import Config, MethodConfig


class KnnSettings(Config):
    """How often the teachers are scored during training, by what, and on what.

    Frozen teachers do not change, so their students are scored.
    """

    measures: Annotated[tuple[CheapMeasure, ...], Field(min_length=1), NamedOnce] = (
        "knn",
        "retrieval",
    )
    """What is measured, as in `evaluate`: each gives a curve, such as `health/video/linear`."""

    dataset: Datasets | None = None
    """Clip dataset with labels: its split `train` gives the neighbors, and its split `val`, or else
    `test`, is scored. Default: the dataset of the training."""
    every_epochs: PositiveFloat = 1.0
    """Epochs between two scores. There is one before training and one at the end."""
    max_clips: PositiveInt = 1000
    """The most labelled clips of each of the two splits, evenly spaced over it."""


class HealthSettings(Config):
    """What to measure of a training's health beyond what each step computes."""

    knn: KnnSettings | None = None
    """Scores the teachers' features during training, by nearest neighbors and retrieval unless
    `measures` names others (`health/video/knn`, `health/audio/retrieval`). Training does not depend
    on it; rank 0 scores while the others wait."""


class PretrainSettings(MethodConfig):
    """The method, and how it is trained."""

    epochs: PositiveFloat
    """Epochs to train; see `epoch_unit`."""
    epoch_unit: Literal["source", "segment"] = "source"
    """What an epoch takes one clip of. `source`, as in the paper: one clip of each video, from
    anywhere in it, also across adjacent segments. `segment`: one clip of each stored segment, so a
    video of 10 s that is stored as two segments gives two clips an epoch."""
    batch_size: PositiveInt
    """Clips of one step, over all workers."""
    splits: tuple[str, ...] = ("train",)
    """Splits to train on. Rows without a split always belong to them."""
    exclude: Location | None = None
    """File of clip ids to leave out, one a line, such as `leaks.txt` of `xkd dataset`."""
    init: InitSettings | None = Field(None, json_schema_extra={"short_for": "source"})
    """Weights that the training begins from: a registered version, a checkpoint, or a file of the
    published method. Default: new weights."""
    seed: NonNegativeInt = 0
    """Seed of the weights, of the order of clips and of their views."""
    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        1, json_schema_extra={"may_change": True}
    )
    """Number of workers, or the least and the most: training then continues with fewer after a node
    is lost, and with more when one joins. `batch_size` is divided among them."""
    use_gpu: bool = Field(False, json_schema_extra={"may_change": True})
    """Trains each worker on a GPU of its own."""
    cpus_per_worker: PositiveFloat | None = Field(None, json_schema_extra={"may_change": True})
    """CPUs of each worker. Default: all CPUs of Ray, divided among the workers node by node; with a
    GPU, 1."""
    parallelism: Literal["ddp", "fsdp"] = Field("ddp", json_schema_extra={"may_change": True})
    """`ddp`: every worker holds all weights. `fsdp`: the weights are divided among the workers."""
    accumulation_steps: PositiveInt = 1
    """Parts in which a worker processes its share of a batch, to save memory. The alignment is then
    the mean over the parts; everything else is as for the whole."""
    activation_checkpointing: bool = Field(False, json_schema_extra={"may_change": True})
    """Computes activations again in the backward pass instead of keeping them, to save memory."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 autocast on a GPU that supports it, else float32."""
    compile: bool = False
    """Compiles the networks with torch.compile."""
    cuda_graphs: bool = False
    """Replays each step as one CUDA graph, so that a GPU does not wait for the processor to start
    some 4,000 operations. Pays for up to about 128 clips of a ViT-B, and more of smaller networks.
    For one worker with a GPU."""
    shuffle_window: PositiveInt = 16
    """Row groups whose rows are shuffled together, over all lanes; each lane has at least one."""
    num_lanes: PositiveInt | None = None
    """Parts of a batch, a divisor of `batch_size`, that take their clips from row groups of their
    own, so that a worker reads the row groups of its lanes alone. By default as many as the dataset
    has row groups for: at least 4 clips of a batch and 32 row groups each. More workers than lanes
    read what they share twice. Trainings from before this setting have 1."""
    log_every: PositiveInt = Field(10, json_schema_extra={"may_change": True})
    """Steps between two records of the losses."""
    checkpoint_every: PositiveInt = Field(200, json_schema_extra={"may_change": True})
    """Steps between two checkpoints. The last step always writes one."""
    checkpoints_kept: PositiveInt = Field(2, json_schema_extra={"may_change": True})
    """Newest checkpoints to keep."""
    max_failures: NonNegativeInt = Field(2, json_schema_extra={"may_change": True})
    """Restarts of the worker group after a worker died."""
    max_seconds: PositiveFloat | None = Field(None, json_schema_extra={"may_change": True})
    """Writes a checkpoint and exits with code 75 after this time; the same command continues.
    Seconds."""
    health: HealthSettings = Field(HealthSettings(), json_schema_extra={"may_change": True})

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
    def _a_graph_has_one_gpu(self) -> "PretrainSettings":
        if self.cuda_graphs and not self.use_gpu:
            raise ValueError("cuda_graphs (true) must be false with use_gpu (false)")
        if self.cuda_graphs and self.worker_range[1] > 1:
            raise ValueError(
                f"cuda_graphs (true) must be false with num_workers ({self.worker_range[1]}): only "
                "the steps of a single worker can be recorded"
            )
        return self

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
                f"epochs ({self.epochs:g}); with fewer epochs, set optimizer.warmup_epochs as well"
            )
        return self


class PretrainConfig(PretrainSettings, JobConfig):
    """`ray_jobs.pretrain`: trains encoders on a clip dataset."""

    name: Name
    """Name of the run. An existing run continues from its last checkpoint."""
    dataset: Datasets
    """Folder of the clip dataset, or a list of folders whose clips count as one dataset."""
    output: Location
    """Folder that gets one folder of checkpoints for each name."""
    resume: Location | None = Field(None, json_schema_extra={"may_change": True})
    """Checkpoint of another run to start from, at its step and so at its position in the order of
    clips. Networks, clips and everything that orders them must be the same, and steps must be left.
    Once this run has a checkpoint of its own, it continues from that."""

    @model_validator(mode="after")
    def _one_beginning(self) -> "PretrainConfig":
        if self.init is not None and self.resume is not None:
            where = self.init.source or self.init.video or self.init.audio
            raise ValueError(
                f"resume ({self.resume}) must not be set with init ({where}): resume continues a "
                "training with its optimizer and its step, init begins a new one from its weights"
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
