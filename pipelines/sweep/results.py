"""Results of a sweep: the best trial, the Pareto front, comparisons and importance of settings.

Scores are accuracies on held-out clips. Only completed trials had the same amount of training, so
only their last scores are compared. All functions depend on the trials alone.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from pipelines.config.space import Domain
from pipelines.config.sweep import SweepConfig
from pipelines.evaluation.rungs import Rung
from pipelines.evaluation.scores import standard_error
from pipelines.quantities import counted
from pipelines.sweep.search import rung_objective
from pipelines.sweep.space import parameters
from pipelines.sweep.trial_files import Trial

_SEED = "seed"
_LEAST_FOR_IMPORTANCE = 6
"""With fewer trials, importance is noise."""


@dataclass(frozen=True)
class Importance:
    """The share of the objective's variance that each entry of the space explains."""

    shares: dict[str, float]
    """Largest first; empty if there are none, see `why_not`."""
    rung: int = 0
    """The rung whose scores are used."""
    num_trials: int = 0
    why_not: str = ""


@dataclass(frozen=True)
class OptionScore:
    """The scores of completed trials with one value of an entry."""

    value: Any
    num_trials: int
    video: tuple[float, float]
    """Mean and standard deviation over the trials; NaN if not scored."""
    audio: tuple[float, float]
    objective: tuple[float, float]


def _completed(trials: Sequence[Trial]) -> list[Trial]:
    """Returns the trials that trained to the end."""
    return [trial for trial in trials if trial.status == "completed"]


def last_objective(config: SweepConfig, trial: Trial) -> float:
    """Returns the last objective of a trial; NaN before the first."""
    return rung_objective(config, trial.rungs[-1]) if trial.rungs else math.nan


def side_score(config: SweepConfig, rung: Rung, side: str) -> float:
    """Returns the score of one modality; NaN if it was not scored."""
    return rung.scores.get(f"{side}/{config.objective.measure}", math.nan)


def by_score(config: SweepConfig, trials: Sequence[Trial]) -> list[Trial]:
    """Sorts trials by status, completed first and failed last, then by score."""
    order = ["completed", "stopped", "collapsed", "running", "failed"]

    def rank(trial: Trial) -> tuple[int, float, int]:
        score = last_objective(config, trial)
        return order.index(trial.status), -score if score == score else math.inf, trial.number

    return sorted(trials, key=rank)


def format_value(value: Any) -> str:
    """Formats a value of the space for people.

    >>> format_value(0.123456), format_value("mean"), format_value([1, 2])
    ('0.123', 'mean', '[1, 2]')
    """
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)


def trials_done(config: SweepConfig, trials: Sequence[Trial]) -> float:
    """Counts ended trials, and running ones by the fraction of their rungs."""
    done = 0.0
    for trial in trials:
        if trial.status != "running":
            done += 1
        elif trial.rungs:
            done += trial.rungs[-1].rung / config.scoring.num_rungs
    return done


def best_trial(config: SweepConfig, trials: Sequence[Trial]) -> Trial | None:
    """Returns the first completed trial of the settings with the best mean over seeds."""
    groups: dict[str, list[Trial]] = {}
    for trial in _completed(trials):
        values = {key: value for key, value in trial.values.items() if key != _SEED}
        groups.setdefault(json.dumps(values, sort_keys=True), []).append(trial)
    if not groups:
        return None
    best = max(groups.values(), key=lambda group: _mean_objective(config, group))
    return best[0]


def _mean_objective(config: SweepConfig, trials: Sequence[Trial]) -> float:
    return statistics.fmean(last_objective(config, trial) for trial in trials)


def within_noise_of(config: SweepConfig, trials: Sequence[Trial], best: Trial) -> list[Trial]:
    """Returns the other completed trials within two standard errors of the best."""
    rung = best.rungs[-1]
    error = standard_error(rung_objective(config, rung), rung.num_test)
    top = last_objective(config, best)
    return [
        trial
        for trial in _completed(trials)
        if trial.number != best.number
        and top - last_objective(config, trial) <= 2 * math.sqrt(2) * error
    ]


def pareto_front(config: SweepConfig, trials: Sequence[Trial]) -> list[Trial]:
    """Returns the completed trials that none beats in both modalities, by video score."""
    points = {
        trial.number: tuple(
            side_score(config, trial.rungs[-1], side) for side in ("video", "audio")
        )
        for trial in _completed(trials)
    }
    front = [
        trial
        for trial in _completed(trials)
        if not any(
            all(a >= b for a, b in zip(other, points[trial.number], strict=True))
            and other != points[trial.number]
            for other in points.values()
        )
    ]
    return sorted(front, key=lambda trial: points[trial.number])


def option_scores(config: SweepConfig, trials: Sequence[Trial]) -> dict[str, list[OptionScore]]:
    """Returns the scores of each value, for entries with countable values."""
    result = {}
    for key, domain in config.space.items():
        groups = [
            (value, [trial for trial in _completed(trials) if trial.values.get(key) == value])
            for value in _options_tried(domain, [trial.values.get(key) for trial in trials])
        ]
        rows = [_option_score(config, value, group) for value, group in groups if group]
        if rows and key != _SEED:
            result[key] = rows
    return result


def _options_tried(domain: Domain, values: Sequence[Any]) -> Sequence[Any]:
    """Returns the values of a domain; of a range, which may be long, those of the trials."""
    if domain.integer is not None:
        return sorted({value for value in values if value is not None})
    return domain.options or ()


def _option_score(config: SweepConfig, value: Any, trials: Sequence[Trial]) -> OptionScore:
    video, audio = (
        [side_score(config, trial.rungs[-1], side) for trial in trials]
        for side in ("video", "audio")
    )
    return OptionScore(
        value=value,
        num_trials=len(trials),
        video=_mean_and_deviation(video),
        audio=_mean_and_deviation(audio),
        objective=_mean_and_deviation([last_objective(config, trial) for trial in trials]),
    )


def _mean_and_deviation(numbers: list[float]) -> tuple[float, float]:
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
    return statistics.fmean(numbers), deviation


def importance(config: SweepConfig, trials: Sequence[Trial]) -> Importance:
    """Computes importance by functional ANOVA over a random forest (Optuna).

    Uses the scores at the last rung that all trials reached, so that stopped trials count too.
    Leaves out entries that some trials lack because of a condition.
    """
    scored = [trial for trial in trials if trial.status != "failed" and len(trial.rungs) > 1]
    if len(scored) < _LEAST_FOR_IMPORTANCE:
        return Importance({}, why_not=f"{counted(len(scored), 'scored trial')} are too few")
    rung = min(len(trial.rungs) for trial in scored) - 1
    scores = [rung_objective(config, trial.rungs[rung]) for trial in scored]
    keys = [
        key
        for key in config.space
        if all(key in trial.values for trial in scored)
        and len({json.dumps(trial.values[key]) for trial in scored}) > 1
    ]
    if len(set(scores)) < 2 or not keys:
        return Importance({}, rung, len(scored), "all trials have the same scores or settings")
    study = optuna.create_study(direction="maximize")
    for trial, score in zip(scored, scores, strict=True):
        plain, distributions = parameters(config.space, {key: trial.values[key] for key in keys})
        study.add_trial(
            optuna.trial.create_trial(value=score, params=plain, distributions=distributions)
        )
    shares = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0), params=keys
    )
    return Importance(dict(shares), rung, len(scored))
