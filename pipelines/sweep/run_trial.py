"""One trial of a sweep: a Ray Train run inside a Tune trial, scored at its rungs.

    Tune trial (this process, memory only)      Ray Train controller      workers
      pretrain() waits ........................ _RungReport <------------ rank 0 scores a rung
      tune.report() <-------------------------- every rung but the last
      tune.report(last rung) after pretrain() has returned

The last rung is reported after the training has ended, since a scheduler stops the trial with it.
"""

from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from pipelines.config.dotted import merged
from pipelines.config.evaluate import EvaluateSettings
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.sweep import SweepConfig
from pipelines.errors import JobFailed, Stopped, UserError
from pipelines.evaluation.rungs import Rung, RungPlan
from pipelines.progress import ignore_progress
from pipelines.storage import AnyPath, path_of
from pipelines.sweep.search import OBJECTIVE, RUNG, tune_result
from pipelines.sweep.space import settings_of
from pipelines.sweep.trial_files import TRIALS_FOLDER, Trial, read_trial, trial_folder
from pipelines.tracking.runs import RunRef
from pipelines.training.pretrain import pretrain

FAILURE = "failure"


def pretrain_values(config: SweepConfig, trial: Trial) -> dict[str, Any]:
    """Returns all settings of a trial's training, not validated."""
    base = config.pretrain.model_dump(mode="json")
    if base["cpus_per_worker"] is None:
        base["cpus_per_worker"] = 1.0
    return merged(base, settings_of(config.space, trial.values))


def trial_config(config: SweepConfig, folder: AnyPath, trial: Trial) -> PretrainConfig:
    """Returns the settings of a trial's training."""
    return PretrainConfig(
        **pretrain_values(config, trial),
        name=trial.name,
        dataset=config.dataset,
        output=str(folder / TRIALS_FOLDER),
        tracking=config.tracking,
        ray=config.ray,
    )


def _rung_plan(config: SweepConfig, folder: AnyPath, number: int) -> RungPlan:
    """Returns when and on what a trial is scored."""
    settings = config.scoring.model_dump(mode="json", include=set(EvaluateSettings.model_fields))
    return RungPlan(
        num_rungs=config.scoring.num_rungs,
        dataset=config.scoring.dataset or config.dataset,
        settings=settings,
        folder=str(trial_folder(folder, number)),
    )


def run_trial(values: dict[str, Any], sweep: dict[str, Any], parent: dict[str, str]) -> None:
    """Trains a trial, or continues it, and reports its rungs; Tune runs this."""
    config = SweepConfig.model_validate(sweep)
    folder = path_of(config.output) / config.name
    trial = read_trial(folder, values["number"])
    last = config.scoring.num_rungs
    measured = [rung for rung in trial.rungs[1:] if rung.rung < last]
    for rung in measured:  # scored before the trial was interrupted
        tune.report(tune_result(config, rung))
    try:
        pretrain(
            trial_config(config, folder, trial),
            on_progress=ignore_progress,
            parent=RunRef(**parent),
            rungs=_rung_plan(config, folder, trial.number),
            callbacks=[_RungReport(config, last_reported=measured[-1].rung if measured else 0)],
        )
    except Stopped:  # continues with the sweep
        raise
    except (JobFailed, UserError) as failure:
        tune.report({RUNG: 0, OBJECTIVE: 0.0, FAILURE: str(failure)})
        return
    tune.report(tune_result(config, read_trial(folder, trial.number).rungs[-1]))


class _RungReport(TuneReportCallback):
    """Reports every rung but the last to Tune, once; runs in Ray Train's controller."""

    def __init__(self, config: SweepConfig, *, last_reported: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray has no types here
        self._config, self._last_reported = config, last_reported

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Passes on the scores of rank 0; reports without scores are checkpoints alone."""
        del checkpoint  # Ray Train keeps them
        rung = metrics[0].get(RUNG, 0)
        if rung <= self._last_reported or rung == self._config.scoring.num_rungs:
            return  # a restarted worker repeats rungs
        self._last_reported = rung
        scored = {name: metrics[0][name] for name in Rung.__dataclass_fields__}
        super().after_report(run_context, [tune_result(self._config, Rung(**scored))], None)
