"""Scores of frozen features during training, on the same clips each time.

`RungScorer` scores a trial of a sweep at its rungs, `KnnScorer` any training at the interval of
`health.knn`. Rank 0 scores the networks in its memory and draws nothing from the global random
state, so scoring does not change the training.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.config.base import Datasets
from pipelines.config.evaluate import EvaluateSettings
from pipelines.config.pretrain import PretrainConfig
from pipelines.dataset.joined import open_datasets
from pipelines.evaluation.features import features_of
from pipelines.evaluation.networks import network_of
from pipelines.evaluation.probes.classifiers import score, side_scores
from pipelines.files import write_json
from pipelines.progress import ignore_progress
from pipelines.storage import AnyPath, path_of
from xkd_core.compilation import uncompiled
from xkd_core.encoders import MODALITIES
from xkd_core.xkd import XKD


@dataclass(frozen=True)
class RungPlan:
    """How often and on what a training is scored, and where the scores are written."""

    num_rungs: int
    dataset: Datasets
    settings: dict[str, Any]
    """`EvaluateSettings` as JSON."""
    folder: str


def rung_steps(total_steps: int, num_rungs: int) -> dict[int, int]:
    """Returns the numbers of the rungs by the steps after which they are scored.

    >>> rung_steps(10, 4)
    {0: 0, 3: 1, 5: 2, 8: 3, 10: 4}
    """
    return {-(-total_steps * rung // num_rungs): rung for rung in range(num_rungs + 1)}


def rung_at(plan: Mapping[str, Any] | None, steps_done: int) -> dict[str, Any]:
    """Returns the rung scored after so many steps, even by an earlier worker; empty if none."""
    rungs = read_rungs(path_of(plan["folder"])) if plan else ()
    return next((asdict(rung) for rung in rungs if rung.step == steps_done), {})


class RungScorer:
    """Scores a training at its rungs. Every worker has one, so that all agree on the steps."""

    def __init__(
        self, plan: Mapping[str, Any] | None, total_steps: int, steps_per_epoch: float
    ) -> None:
        self._plan = RungPlan(**plan) if plan else None
        self._steps = rung_steps(total_steps, self._plan.num_rungs) if self._plan else {}
        self._steps_per_epoch = steps_per_epoch

    def is_due(self, steps_done: int) -> bool:
        """Whether a rung follows after so many steps."""
        return steps_done in self._steps

    def score(
        self, model: XKD, config: PretrainConfig, steps_done: int, collapse: Sequence[str]
    ) -> dict[str, Any]:
        """Scores the networks; writes and returns the rung, with its signs of collapse."""
        assert self._plan is not None
        settings = EvaluateSettings.model_validate(self._plan.settings)
        dataset = open_datasets(self._plan.dataset)
        networks = {"trained": network_of(model, config.model, settings.role)}
        with uncompiled():
            features = features_of(networks, dataset, settings, ignore_progress)
        found = score(features, settings)
        sizes = [
            found.modalities[side]["trained"] for side in MODALITIES if side in found.modalities
        ]
        rung = Rung(
            rung=self._steps[steps_done],
            step=steps_done,
            epoch=steps_done / self._steps_per_epoch,
            scores=side_scores(found),
            num_test=min((network.num_test for network in sizes), default=0),
            collapse=tuple(collapse),
        )
        add_rung(path_of(self._plan.folder), rung)
        return asdict(rung)


def knn_settings(config: PretrainConfig) -> EvaluateSettings:
    """Returns how `health.knn` scores a training.

    Raises:
        AssertionError: If it is not set.
    """
    assert config.health.knn is not None
    return EvaluateSettings(
        test_splits=("val", "test"),
        num_windows=1,
        untrained_baseline=False,
        measures=config.health.knn.measures,
        fusion=(),
        retrieval_sizes=(),
        role="student" if config.objective.teacher == "frozen" else "teacher",
    )


class KnnScorer:
    """Scores the features of a training at the interval of `health.knn`."""

    def __init__(self, config: PretrainConfig, total_steps: int, steps_per_epoch: float) -> None:
        self._config, self._knn = config, config.health.knn
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch

    def is_due(self, steps_done: int) -> bool:
        """Whether a score follows after so many steps."""
        if self._knn is None:
            return False
        interval = self._knn.every_epochs * self._steps_per_epoch
        begins = steps_done // interval > (steps_done - 1) // interval
        return begins or steps_done == self._total_steps

    def score(self, model: XKD) -> dict[str, float]:
        """Returns accuracies as `health/` metrics, for the modalities of the labelled clips."""
        assert self._knn is not None
        dataset = open_datasets(self._knn.dataset or self._config.dataset)
        settings = knn_settings(self._config)
        with uncompiled():
            features = features_of(
                {"trained": network_of(model, self._config.model, settings.role)},
                dataset,
                settings,
                ignore_progress,
                max_clips=self._knn.max_clips,
            )
        scores = side_scores(score(features, settings))
        return {f"health/{path}": value for path, value in scores.items()}


_RUNGS_FILE = "rungs.json"


@dataclass(frozen=True)
class Rung:
    """The scores of a trial at one point of its training."""

    rung: int
    """0 stands before the first step."""
    step: int
    epoch: float
    scores: Mapping[str, float]
    """Held-out scores: `video/knn`, `audio/linear`, `audio/retrieval`, ..."""
    num_test: int = 0
    """Number of held-out clips scored; the smaller of the two modalities'."""
    collapse: Sequence[str] = ()
    """Signs of collapse, as sentences."""


def add_rung(folder: AnyPath, rung: Rung) -> None:
    """Writes a rung. One that is scored again replaces itself and all later ones."""
    kept = [asdict(other) for other in read_rungs(folder) if other.rung < rung.rung]
    write_json(folder / _RUNGS_FILE, [*kept, asdict(rung)])


def read_rungs(folder: AnyPath) -> tuple[Rung, ...]:
    """Reads the scores of a trial so far."""
    file = folder / _RUNGS_FILE
    return tuple(Rung(**rung) for rung in json.loads(file.read_text())) if file.exists() else ()
