"""Settings of pretraining: the method, and how it is trained."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipelines.config.base import JobConfig, Location, Name, Place
from xkd_core.config import Config, MethodConfig


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
    epoch_unit: Literal["source", "segment"] = "source"
    """What an epoch takes one clip of. `source`, as in the paper: one clip of each video, from
    anywhere in it, also across adjacent segments. `segment`: one clip of each stored segment, so a
    video of 10 s that is stored as two segments gives two clips an epoch."""
    batch_size: PositiveInt
    """Clips of one step over all workers."""
    splits: tuple[str, ...] = ("train",)
    """Splits trained on; rows without a split always are."""
    exclude: Place | None = None
    """A file of clip ids, one a line, that are left out, such as `leaks.txt` of `xkd dataset`."""
    seed: NonNegativeInt = 0
    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        1, json_schema_extra={"may_change": True}
    )
    """A number, or the least and the most: training then goes on with the workers there are, fewer
    after a node is lost and more when one comes; `batch_size` stays that of all of them."""
    use_gpu: bool = Field(False, json_schema_extra={"may_change": True})
    cpus_per_worker: PositiveFloat | None = Field(None, json_schema_extra={"may_change": True})
    """By default all CPUs of Ray shared out among the workers, node by node, or 1 with a GPU."""
    parallelism: Literal["ddp", "fsdp"] = Field("ddp", json_schema_extra={"may_change": True})
    """`ddp`: each worker has all weights; `fsdp`: they are spread over the workers."""
    accumulation_steps: PositiveInt = 1
    """Parts in which a worker takes its share of a batch; the alignment is then the mean over
    parts, all else is as for the whole."""
    activation_checkpointing: bool = Field(False, json_schema_extra={"may_change": True})
    """Compute activations again in the backward pass instead of keeping them."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` is bfloat16 autocast on a GPU that has it, else float32."""
    compile: bool = False
    """Compile the networks with torch.compile."""
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
    """Steps between two checkpoints; the last step always leaves one."""
    checkpoints_kept: PositiveInt = Field(2, json_schema_extra={"may_change": True})
    max_failures: NonNegativeInt = Field(2, json_schema_extra={"may_change": True})
    """Times that the worker group is started again after a worker died."""
    max_seconds: PositiveFloat | None = Field(None, json_schema_extra={"may_change": True})
    """Seconds after which one call leaves a checkpoint and ends with exit code 75; the same
    command goes on."""
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
    resume: Place | None = Field(None, json_schema_extra={"may_change": True})
    """A checkpoint of another run to begin from, at its step and so at its place in the order of
    clips: networks, clips and all that orders them must be the same, and there must be steps left
    to do. Once this run has a checkpoint of its own it goes on from its newest."""


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
