"""The page of a sweep: scores over time, importance of settings, audio against video, winner.

It follows the rules of all pages (`page.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import yaml

from pipelines.config.sweep import SweepConfig
from pipelines.evaluation.rungs import Rung
from pipelines.evaluation.scores import standard_error
from pipelines.quantities import counted
from pipelines.redaction import redacted
from pipelines.report.page import page_environment, write_page
from pipelines.report.sweep_figures import (
    Look,
    TrialLine,
    TrialPoint,
    draw_front,
    draw_setting,
    draw_trials,
)
from pipelines.storage import AnyPath
from pipelines.sweep.results import (
    by_score,
    format_value,
    importance,
    last_objective,
    option_scores,
    pareto_front,
    side_score,
    within_noise_of,
)
from pipelines.sweep.search import rung_objective
from pipelines.sweep.sweep import SweepResult
from pipelines.sweep.trial_files import Trial
from pipelines.sweep.winner import objective_name, winner_command
from pipelines.tracking.code_version import code_version
from pipelines.tracking.runs import RunRef

_SIDES = ("video", "audio")


@dataclass(frozen=True)
class SweepRecord:
    """The results of a sweep that its page shows."""

    config: SweepConfig
    result: SweepResult
    run: RunRef
    winner: AnyPath
    seconds: float
    dataset_id: str
    test_split: str
    """The split that the trials were scored on."""


def write_sweep_report(path: AnyPath, record: SweepRecord) -> AnyPath:
    """Writes the page of a sweep.

    Raises:
        UserError: if the file cannot be written.
    """
    return write_page(path, render_sweep(record))


def render_sweep(record: SweepRecord) -> str:
    """Returns the page as HTML."""
    config, trials, best = record.config, record.result.trials, record.result.best
    counts = {
        status: sum(trial.status == status for trial in trials)
        for status in ("completed", "stopped", "collapsed", "failed")
    }
    first, last = best.rungs[0], best.rungs[-1]
    return (
        page_environment()
        .get_template("sweep.html")
        .render(
            name=config.name,
            created=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
            seconds=record.seconds,
            objective=objective_name(config),
            counts=counts,
            num_trials=len(trials),
            best=best,
            top=rung_objective(config, last),
            before=rung_objective(config, first),
            error=standard_error(rung_objective(config, last), last.num_test),
            num_test=last.num_test,
            close=len(within_noise_of(config, trials, best)),
            best_sides=[
                (side, *(side_score(config, rung, side) for rung in (last, first)))
                for side in _SIDES
            ],
            test_split=record.test_split,
            over_time=_over_time(config, trials, best),
            settings=_settings(config, trials, best),
            importance=importance(config, trials),
            options=option_scores(config, trials),
            front=_front(config, trials, best),
            rows=[_row(config, trial) for trial in by_score(config, trials)],
            keys=list(config.space),
            winner=record.winner.read_text(),
            command=winner_command(record.winner),
            settings_text=redacted(_yaml(config)),
            provenance=_provenance(record),
            format_value=format_value,
            stopping=config.stopping,
            num_rungs=config.scoring.num_rungs,
            search=config.search,
        )
    )


def _look(trial: Trial, best: Trial) -> Look:
    if trial.number == best.number:
        return "best"
    if trial.status == "collapsed":
        return "collapsed"
    return "completed" if trial.status == "completed" else "stopped"


def _scored(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.rungs]


def _over_time(config: SweepConfig, trials: Sequence[Trial], best: Trial) -> list[dict[str, Any]]:
    """Draws the objective, then each modality."""
    return [
        {
            "title": name,
            "side": name if name in _SIDES else "plain",
            "drawing": draw_trials(
                [
                    TrialLine(
                        [rung.epoch for rung in trial.rungs],
                        [_value(config, rung, name) for rung in trial.rungs],
                        _look(trial, best),
                    )
                    for trial in _scored(trials)
                ],
                alt=f"{name}: score of each of {counted(len(trials), 'trial')} over epochs",
                width=1000 if name == "objective" else 460,
                height=260 if name == "objective" else 210,
            ),
        }
        for name in ("objective", *_SIDES)
        if not all(math.isnan(_value(config, trial.rungs[-1], name)) for trial in _scored(trials))
    ]


def _value(config: SweepConfig, rung: Rung, name: str) -> float:
    return rung_objective(config, rung) if name == "objective" else side_score(config, rung, name)


def _settings(config: SweepConfig, trials: Sequence[Trial], best: Trial) -> list[dict[str, Any]]:
    """Draws the last score of each trial against each entry of the space."""
    cards = []
    for key, domain in config.space.items():
        is_discrete = domain.kind in ("choice", "bundles")
        points = [
            TrialPoint(
                format_value(trial.values[key]) if is_discrete else trial.values[key],
                last_objective(config, trial),
                _look(trial, best),
            )
            for trial in _scored(trials)
            if key in trial.values
        ]
        if not points:
            continue
        when = ", ".join(
            f"{parent} is {format_value(value)}" for parent, value in domain.when.items()
        )
        cards.append(
            {
                "key": key,
                "best": format_value(best.values[key]) if key in best.values else "not searched",
                "when": when,
                "drawing": draw_setting(
                    points,
                    alt=f"objective of {counted(len(points), 'trial')} against {key}",
                    is_log=domain.kind == "loguniform",
                    is_whole=domain.kind == "integer",
                ),
            }
        )
    return cards


def _front(config: SweepConfig, trials: Sequence[Trial], best: Trial) -> dict[str, Any] | None:
    def point(trial: Trial) -> TrialPoint:
        video, audio = (side_score(config, trial.rungs[-1], side) for side in _SIDES)
        return TrialPoint(video, audio, _look(trial, best))

    points = [point(trial) for trial in _scored(trials)]
    front = pareto_front(config, trials)
    if not front or any(math.isnan(p.x) or math.isnan(p.y) for p in points):
        return None
    num_trials = counted(len(points), "trial")
    alt = f"audio against video score of {num_trials}, {len(front)} of them on the front"
    return {
        "drawing": draw_front(points, [point(trial) for trial in front], alt=alt),
        "trials": [
            (trial, *(side_score(config, trial.rungs[-1], s) for s in _SIDES)) for trial in front
        ],
    }


def _row(config: SweepConfig, trial: Trial) -> dict[str, Any]:
    last = trial.rungs[-1] if trial.rungs else None
    return {
        "trial": trial,
        "rung": last.rung if last else 0,
        "sides": [side_score(config, last, side) if last else math.nan for side in _SIDES],
        "objective": last_objective(config, trial),
        "values": [
            format_value(trial.values[k]) if k in trial.values else "" for k in config.space
        ],
    }


def _yaml(config: SweepConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False)


def _provenance(record: SweepRecord) -> dict[str, str]:
    return {
        "MLflow": redacted(record.run.uri),
        "run": record.run.run_id,
        "MLflow page": record.run.page(),
        "evaluation dataset id": record.dataset_id,
        "split that trials were scored on": record.test_split,
        "code version": code_version(),
        "trials": str(record.result.folder / "trials"),
    }
