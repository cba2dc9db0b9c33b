"""Settings of a sweep: the space, the search, and the score of a trial."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from pydantic import model_validator as checked

from pipelines.config.base import Datasets, JobConfig, Location, Name, NamedOnce
from pipelines.config.evaluate import CheapMeasure, EvaluateSettings
from pipelines.config.pretrain import PretrainSettings
from pipelines.config.promote import PromoteSettings
from pipelines.config.space import Domain, flat_space, wanted_values
from xkd_core.config import Config

_NAME = re.compile(r"\w[\w .-]{0,79}")
Modality = Literal["video", "audio", "mean", "both"]


class SearchSettings(Config):
    """How the settings of a trial are chosen."""

    kind: Literal["random", "grid", "tpe"] = "tpe"
    """`tpe` is Optuna's tree-structured Parzen estimator, over two objectives with
    `objective.modality: both`; `grid` takes every combination once."""
    num_trials: PositiveInt | None = None
    """Number of trials. A grid defaults to all combinations; the other kinds need a number."""
    startup_trials: PositiveInt = 8
    """Trials drawn at random before `tpe` learns from them."""
    seed: NonNegativeInt = 0
    """Seed of the search."""


class StoppingSettings(Config):
    """Early stopping of trials."""

    kind: Literal["none", "asha", "median"] = "asha"
    """`asha` continues only the best 1/reduction_factor of trials at each rung. `median` stops
    trials whose best score is below the median of the others' running means."""
    grace_rungs: PositiveInt = 1
    """Rungs that every trial reaches."""
    reduction_factor: Annotated[float, Field(gt=1.0)] = 2.0
    """With `asha`, one of this many trials continues at each rung."""
    min_trials: PositiveInt = 3
    """Number of other trials that `median` needs."""
    collapsed: bool = True
    """Stops trials whose features collapse, also at the last rung. The check needs workers that see
    at least 4 clips at once. If false, such a trial completes with a mark, and may be the best."""


class ScoreSettings(Config):
    """The score that trials are compared by: of frozen features, never the loss."""

    measure: CheapMeasure = "knn"
    """Score to search by: k-NN, a probe, or `retrieval` (recall@5 of the modality that asks)."""
    modality: Modality = "mean"
    """Encoder that is scored: one, the `mean` of both, or `both` as two objectives (early stopping
    then uses the mean)."""


class RungSettings(EvaluateSettings):
    """How teachers (or students) are scored during a trial."""

    dataset: Datasets | None = None
    """Labelled clip dataset. Default: the dataset of the training."""
    test_splits: Annotated[tuple[str, ...], NamedOnce] = ("val", "test")
    """Splits to score: the first of these that the dataset has. A choice made on `test` leaves no
    clips for an unbiased report."""
    num_windows: PositiveInt = 1
    """Windows of a segment whose features are averaged; fewer than in `evaluate`, to save time."""
    fusion: Annotated[tuple[Literal["both", "late"], ...], NamedOnce] = ()
    """Scores of both modalities together, which no objective uses."""
    untrained_baseline: bool = False
    """Scores the network before training too."""
    num_rungs: PositiveInt = 4
    """Number of scores of a trial, evenly spaced over its training, the last at its end."""

    @checked(mode="after")
    def _cheap(self) -> "RungSettings":
        if "finetune" in self.measures:
            raise ValueError(
                "measures (finetune) must be left to final.evaluate: it trains the encoder again"
            )
        return self


class FinalSettings(Config):
    """The full-length training of the best settings, whose encoders are registered."""

    epochs: PositiveFloat | None = None
    """Epochs of the training. Default: those of the trials."""
    evaluate: EvaluateSettings = EvaluateSettings()
    promote: PromoteSettings = PromoteSettings()

    @checked(mode="after")
    def _same_role(self) -> "FinalSettings":
        if self.evaluate.role != self.promote.role:
            raise ValueError(
                f"promote.role ({self.promote.role}) must equal "
                f"evaluate.role ({self.evaluate.role}): what is registered is what was scored"
            )
        return self


class SweepConfig(JobConfig):
    """`ray_jobs.sweep`: finds settings for a long training by many short ones."""

    name: Name
    """Name of the sweep. An existing sweep continues where it stopped."""
    dataset: Datasets
    """Folder of the clip dataset, or a list of folders whose clips count as one dataset."""
    output: Location
    """Folder that gets one folder for each name."""
    pretrain: PretrainSettings = Field(
        json_schema_extra={"may_change": ["max_failures", "log_every"]}
    )
    """Settings of all trials. Without `cpus_per_worker`, a worker gets one CPU."""
    space: dict[str, Domain] = Field(min_length=1)
    """Searched settings by their dotted names, such as `objective.alignment_weight:
    {loguniform: [0.01, 1]}`; kinds: choice, uniform, loguniform, integer, bundles."""
    search: SearchSettings = Field(
        SearchSettings(), json_schema_extra={"may_change": ["num_trials"]}
    )
    stopping: StoppingSettings = StoppingSettings()
    objective: ScoreSettings = ScoreSettings()
    scoring: RungSettings = RungSettings()
    max_concurrent_trials: PositiveInt | None = Field(None, json_schema_extra={"may_change": True})
    """Trials that run at once. Default: as many as fit."""
    retry_failed: bool = Field(False, json_schema_extra={"may_change": True})
    """Continues failed trials with the sweep, from their last checkpoints and in their own MLflow
    runs. Completed, stopped and collapsed trials never continue."""
    final: FinalSettings | None = Field(None, json_schema_extra={"may_change": True})
    """Trains the best settings at full length and registers the encoders."""

    @field_validator("space", mode="before")
    @classmethod
    def _dotted(cls, space: Any) -> Any:
        return flat_space(space)

    @checked(mode="after")
    def _search_fits(self) -> "SweepConfig":
        problems = _trial_problems(self.pretrain)
        problems += _search_problems(self) + _condition_problems(self.space)
        problems += _name_problems(self.space) + _teacher_problems(self)
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _trial_problems(pretrain: PretrainSettings) -> list[str]:
    """Trials are alike in size, and a rung is scored by one worker that holds the networks."""
    problems = []
    least, most = pretrain.worker_range
    if least != most:
        problems.append(f"pretrain.num_workers ({least}, {most}) must be one number in a sweep")
    if pretrain.parallelism != "ddp":
        problems.append(f"pretrain.parallelism ({pretrain.parallelism}) must be ddp in a sweep")
    if pretrain.max_seconds is not None:
        problems.append(
            f"pretrain.max_seconds ({pretrain.max_seconds:g}) must not be set in a sweep, "
            "where a trial ends at its last rung or by early stopping"
        )
    return problems


def _teacher_problems(config: SweepConfig) -> list[str]:
    """Frozen teachers are what training began from, whatever a trial does."""
    roles = {"scoring.role": config.scoring.role}
    if config.final is not None:
        roles["final.evaluate.role"] = config.final.evaluate.role
    is_frozen = config.pretrain.objective.teacher == "frozen"
    return [
        f"{name} (teacher) must be student with pretrain.objective.teacher (frozen), whose "
        "teachers learn nothing"
        for name, role in roles.items()
        if is_frozen and role == "teacher"
    ]


def _name_problems(space: Mapping[str, Domain]) -> list[str]:
    """Entries and bundles are names of parameters and tags in MLflow, which refuses others."""
    names = {f"space.{key}": key for key in space}
    names |= {
        f"space.{key}.bundles ({name})": name
        for key, domain in space.items()
        for name in domain.bundles or {}
    }
    return [
        f"{entry} must be at most 80 letters, digits, blanks and any of . _ -"
        for entry, name in names.items()
        if not _NAME.fullmatch(name)
    ]


def _search_problems(config: SweepConfig) -> list[str]:
    problems = []
    if config.objective.measure not in config.scoring.measures:
        problems.append(
            f"objective.measure ({config.objective.measure}) must be one of scoring.measures "
            f"({', '.join(config.scoring.measures)})"
        )
    if config.stopping.grace_rungs > config.scoring.num_rungs:
        problems.append(
            f"stopping.grace_rungs ({config.stopping.grace_rungs}) must not be above "
            f"scoring.num_rungs ({config.scoring.num_rungs})"
        )
    if config.search.kind == "grid":
        endless = [key for key, domain in config.space.items() if domain.options is None]
        if endless:
            problems.append(
                f"search.kind (grid) needs domains that can be counted, not {', '.join(endless)}"
            )
        if config.objective.modality == "both":
            problems.append("objective.modality (both) needs search.kind random or tpe")
    elif config.search.num_trials is None:
        problems.append(
            f"search.num_trials is missing: search.kind ({config.search.kind}) needs it"
        )
    return problems


def _condition_problems(space: Mapping[str, Domain]) -> list[str]:
    """A condition is on an entry before it that can be counted, and on values that this has."""
    problems = []
    before: dict[str, Domain] = {}
    for key, domain in space.items():
        for parent, wanted in domain.when.items():
            options = before[parent].options if parent in before else None
            if options is None:
                problems.append(
                    f"space.{key}.when ({parent}) must be a choice that stands before it"
                )
                continue
            missing = [value for value in wanted_values(wanted) if value not in options]
            if missing:
                problems.append(
                    f"space.{key}.when ({parent}: {missing[0]}) is no value of {parent}"
                )
        before[key] = domain
    return problems
