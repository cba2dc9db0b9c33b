"""Settings of a sweep: which settings of pretraining are searched, how, and by what score."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from pydantic import model_validator as checked

from pipelines.config.base import Datasets, JobConfig, Location, Name
from pipelines.config.evaluate import EvaluateSettings, Measure
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
    """A grid has as many as combinations, or fewer if asked for; the others need a number."""
    startup_trials: PositiveInt = 8
    """Trials drawn at random before `tpe` learns from them."""
    seed: NonNegativeInt = 0
    """Seed of the search."""


class StoppingSettings(Config):
    """Which trials end before their training does."""

    kind: Literal["none", "asha", "median"] = "asha"
    """`asha`: at a rung only the best 1/reduction_factor go on; `median`: those whose best score
    is below the median of the others' running means end."""
    grace_rungs: PositiveInt = 1
    """Rungs that every trial gets."""
    reduction_factor: Annotated[float, Field(gt=1.0)] = 2.0
    """With `asha`, one of this many trials continues at each rung."""
    min_trials: PositiveInt = 3
    """Other trials that `median` needs."""
    collapsed: bool = True
    """End a trial whose features collapse, which takes workers that see 4 clips at once; one that
    collapses as late as the last rung counts as collapsed too. Without it such a trial completes,
    may be the best, and is marked."""


class ScoreSettings(Config):
    """What a trial is judged by: a score of frozen features, never its loss."""

    measure: Measure = "knn"
    """Score to search by: k-NN, a probe, or `retrieval` (recall@5 of the modality that asks)."""
    modality: Modality = "mean"
    """Encoder that is scored; `mean` of both, or `both` as two objectives (early stopping then
    goes by the mean)."""


class RungSettings(EvaluateSettings):
    """How the teachers (or students) are scored while a trial trains."""

    dataset: Datasets | None = None
    """Labelled clip dataset; by default the one that is trained on."""
    test_splits: tuple[str, ...] = ("val", "test")
    """The first that there is; a choice made on `test` leaves no clips to report on."""
    num_windows: PositiveInt = 1
    """Windows of a segment whose features are averaged. Fewer than at the end, to save time."""
    fusion: tuple[Literal["both", "late"], ...] = ()
    """Scores of both modalities together, which no objective takes."""
    untrained_baseline: bool = False
    """Scores the network before training too."""
    num_rungs: PositiveInt = 4
    """Times that a trial is scored, evenly spread over its training, the last at its end."""


class FinalSettings(Config):
    """The full-length training of the best settings, which ends in the registry."""

    epochs: PositiveFloat | None = None
    """By default those of the trials."""
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
    """`ray_jobs.sweep`: many short trainings find the settings of a long one."""

    name: Name
    """Name of the sweep; a sweep that exists goes on where it stopped."""
    dataset: Datasets
    """Folder of the clip dataset, or a list of folders whose clips count as one dataset."""
    output: Location
    """Folder that gets one folder for each name."""
    pretrain: PretrainSettings = Field(
        json_schema_extra={"may_change": ["max_failures", "log_every"]}
    )
    """What all trials have in common; without `cpus_per_worker` a worker gets one CPU."""
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
    """By default as many as fit."""
    retry_failed: bool = Field(False, json_schema_extra={"may_change": True})
    """When a sweep goes on, failed trials do too, from their last checkpoints and in their own
    MLflow runs; completed, stopped and collapsed ones never do."""
    final: FinalSettings | None = Field(None, json_schema_extra={"may_change": True})
    """Train the best settings at full length and register the encoders."""

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
