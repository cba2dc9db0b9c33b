"""Suggests trials and stops them early: Tune's searcher and scheduler over the trials on disk.

A suggestion is a function of (space, seed, number, earlier trials), and the trials are read from
disk each time, so a killed sweep continues as if it had not been. Tune's own `OptunaSearch` keeps
its study in the driver's memory and cannot take results of trials in a space with conditions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from pipelines.config.sweep import Modality, SweepConfig
from pipelines.evaluation.rungs import Rung
from pipelines.storage import AnyPath
from pipelines.sweep.space import Values, draw, grid, num_combinations, parameters
from pipelines.sweep.trial_files import Trial, add_trial, read_trials

RUNG = "rung"
OBJECTIVE = "objective"


def objective(scores: Any, measure: str, modality: Modality) -> float:
    """Returns the number that ranks trials; with two objectives, their mean."""
    sides = ("video", "audio") if modality in ("mean", "both") else (modality,)
    return sum(float(scores[f"{side}/{measure}"]) for side in sides) / len(sides)


def rung_objective(config: SweepConfig, rung: Rung) -> float:
    """Returns the objective at a rung."""
    return objective(rung.scores, config.objective.measure, config.objective.modality)


def tune_result(config: SweepConfig, rung: Rung) -> dict[str, Any]:
    """Returns what Tune gets of a rung."""
    return {
        RUNG: rung.rung,
        OBJECTIVE: rung_objective(config, rung),
        "collapse": "; ".join(rung.collapse),
    }


class SweepSearch(Searcher):
    """Suggests the trials that have not ended, then new ones."""

    def __init__(self, config: SweepConfig, folder: AnyPath) -> None:
        super().__init__()
        self._config, self._folder = config, folder
        self._waiting = [t.number for t in read_trials(folder) if t.status == "running"]

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # Ray's own
        """Returns the number of the next trial, which is on disk before Tune knows it."""
        del trial_id
        if self._waiting:
            return {"number": self._waiting.pop(0)}
        trials = read_trials(self._folder)
        number = len(trials)
        if number >= num_trials(self._config):
            return Searcher.FINISHED
        add_trial(self._folder, number, suggestion(self._config, trials, number))
        return {"number": number}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Does nothing: results are on disk."""

    def save(self, checkpoint_path: str) -> None:
        """Writes an empty state, since Tune expects a file."""
        Path(checkpoint_path).write_text("{}")

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: the state is on disk."""


def num_trials(config: SweepConfig) -> int:
    """Returns the number of trials of the whole sweep."""
    wanted = config.search.num_trials
    if config.search.kind == "grid":
        all_there_are = num_combinations(config.space)
        return all_there_are if wanted is None else min(wanted, all_there_are)
    assert wanted is not None  # the settings are checked for it
    return wanted


def suggestion(config: SweepConfig, trials: Sequence[Trial], number: int) -> Values:
    """Returns the values of a trial, given the earlier ones."""
    if config.search.kind == "grid":
        return next(islice(grid(config.space), number, None))
    study = study_of(config, trials, _sampler_for(config, number))
    return draw(config.space, study.ask())


def _sampler_for(config: SweepConfig, number: int) -> optuna.samplers.BaseSampler:
    """Returns a sampler whose random numbers depend on the number of the trial."""
    # Spread the seeds: neighboring ones may give similar random numbers.
    seed = (config.search.seed * 1_000_003 + number * 7919 + 1) % 2**32
    if config.search.kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=config.search.startup_trials,
        constant_liar=True,  # running trials count as bad, so that parallel ones differ
    )


def study_of(
    config: SweepConfig, trials: Sequence[Trial], sampler: optuna.samplers.BaseSampler | None = None
) -> optuna.Study:
    """Returns the trials so far as an Optuna study in memory."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    both = config.objective.modality == "both"
    study = optuna.create_study(directions=["maximize"] * (2 if both else 1), sampler=sampler)
    for trial in trials:
        study.add_trial(_frozen(config, trial, both))
    return study


def _frozen(config: SweepConfig, trial: Trial, both: bool) -> FrozenTrial:
    plain, distributions = parameters(config.space, dict(trial.values))
    measure = config.objective.measure
    if trial.status == "completed":
        scores = trial.rungs[-1].scores
        sides: tuple[Modality, ...] = ("video", "audio") if both else (config.objective.modality,)
        values = [objective(scores, measure, side) for side in sides]
        return create_trial(
            state=TrialState.COMPLETE, values=values, params=plain, distributions=distributions
        )
    if trial.status in ("stopped", "collapsed") and not both:
        steps = {rung.rung: rung_objective(config, rung) for rung in trial.rungs}
        return create_trial(
            state=TrialState.PRUNED,
            params=plain,
            distributions=distributions,
            intermediate_values=steps,
        )
    state = TrialState.RUNNING if trial.status == "running" else TrialState.FAIL
    return create_trial(state=state, params=plain, distributions=distributions)


@dataclass(frozen=True)
class _Ended:
    """What Ray's schedulers need of a trial that an earlier driver ran."""

    trial_id: str


def make_scheduler(config: SweepConfig, trials: Sequence[Trial]) -> TrialScheduler:
    """Returns the scheduler that the settings name, with the rungs of ended trials."""
    stopping, last = config.stopping, config.scoring.num_rungs
    scheduler: Any
    if stopping.kind == "none":
        return FIFOScheduler()
    if stopping.kind == "asha":
        scheduler = ASHAScheduler(
            time_attr=RUNG,
            metric=OBJECTIVE,
            mode="max",
            grace_period=stopping.grace_rungs,
            reduction_factor=stopping.reduction_factor,
            max_t=last,
        )
    else:
        scheduler = MedianStoppingRule(
            time_attr=RUNG,
            metric=OBJECTIVE,
            mode="max",
            grace_period=stopping.grace_rungs,
            min_samples_required=stopping.min_trials,
            # Never pause a trial: it would have to start Ray Train again.
            min_time_slice=float("inf"),  # type: ignore[arg-type]  # no int is long enough
        )
    for trial in trials:
        if trial.status == "running":
            continue  # reports its rungs again when it continues
        seen = _Ended(trial.name)
        scheduler.on_trial_add(None, seen)
        # The median rule only records a completed trial; it must not decide on it again.
        tell = scheduler.on_trial_result if stopping.kind == "asha" else scheduler.on_trial_complete
        for rung in trial.rungs[1:]:
            tell(None, seen, tune_result(config, rung))
    return scheduler
