"""Runs a sweep on Ray Tune: many short trainings, scored at rungs, the worst stopped early.

A sweep is identified by its name: the same name with the same settings continues the trials that
have not ended, each in its own MLflow run below the sweep's. What has happened is read from the
folders of the trials (`trial_files.py`), never from Tune, whose state may be seconds old when the
driver is killed.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ray import tune
from ray.exceptions import RayError, RayTaskError

from pipelines.config.sweep import SweepConfig
from pipelines.dataset.joined import open_datasets
from pipelines.errors import JobFailed
from pipelines.nodes import has_autoscaler, wait_for_nodes
from pipelines.progress import OnProgress, ignore_progress
from pipelines.redaction import one_line, redacted
from pipelines.shared import check_shared
from pipelines.storage import AnyPath, ray_storage
from pipelines.sweep.checks import (
    TRIAL_BYTES,
    sweep_folder,
    trial_bundles,
    trials_at_once,
)
from pipelines.sweep.results import best_trial, last_objective, trials_done
from pipelines.sweep.run_trial import FAILURE, run_trial
from pipelines.sweep.runs import close_orphaned_runs, close_trial, send_unsent
from pipelines.sweep.search import SweepSearch, make_scheduler, num_trials
from pipelines.sweep.trial_files import (
    Status,
    Trial,
    end_trial,
    read_trial,
    read_trials,
    reopen_trial,
    trial_folder,
)
from pipelines.tracking.runs import RunRef, log_dataset
from pipelines.training.initial_weights import discard_weights

logger = logging.getLogger(__name__)

_HAD_COLLAPSED = "but had collapsed"
"""The remark on a completed trial, in a sweep that does not stop collapsed trials."""


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep."""

    folder: AnyPath
    trials: tuple[Trial, ...]
    best: Trial
    """The best completed trial; with several seeds, of the settings that are best on average."""


def sweep(config: SweepConfig, run: RunRef, *, on_progress: OnProgress) -> SweepResult:
    """Runs the remaining trials; Ray must be connected and the checks passed.

    Args:
        config: The settings.
        run: The MLflow run of the sweep, the parent of those of its trials.
        on_progress: Called as trials reach rungs and end.

    Raises:
        UserError: if Ray has too few resources for a trial.
        JobFailed: if Ray or Tune fails, or no trial completes.
    """
    folder = sweep_folder(config)
    at_once = wait_for_nodes(
        lambda nodes: trials_at_once(config, nodes), trial_bundles(config), config.ray.wait_seconds
    )
    if has_autoscaler():  # the autoscaler adds nodes for the others
        at_once = max(at_once, config.max_concurrent_trials or at_once)
    check_shared(str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    location = config.scoring.dataset or config.dataset
    dataset = open_datasets(location)
    log_dataset(
        run,
        dataset_id=dataset.dataset_id,
        path=dataset.path,
        num_clips=dataset.num_clips,
        context="evaluation",
    )
    try:
        _run_trials(config, folder, run, at_once, on_progress)
    finally:
        close_orphaned_runs(run, folder)
        send_unsent(run, folder)
    trials = tuple(read_trials(folder))
    best = best_trial(config, trials)
    if best is None:
        reasons = "; ".join(f"{trial.name} {trial.status}: {trial.reason}" for trial in trials)
        raise JobFailed(f"no trial completed: {reasons[:1000]}")
    return SweepResult(folder, trials, best)


def _run_trials(
    config: SweepConfig, folder: AnyPath, run: RunRef, at_once: int, on_progress: OnProgress
) -> None:
    if config.retry_failed:
        reopen_failed(config, folder)
    trials = read_trials(folder)
    ended = [trial for trial in trials if trial.status != "running"]
    left = num_trials(config) - len(ended)
    if left <= 0:
        return
    bookkeeper = _Bookkeeper(config, folder, run, on_progress)
    bookkeeper.say()
    trainable = tune.with_parameters(
        run_trial, sweep=config.model_dump(mode="json", exclude_unset=True), parent=asdict(run)
    )
    name = time.strftime("%Y%m%d-%H%M%S")
    filesystem, storage_path = ray_storage(str(folder / "tune"))
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": 0, "memory": TRIAL_BYTES}),
        tune_config=tune.TuneConfig(
            num_samples=left,
            max_concurrent_trials=at_once,
            search_alg=SweepSearch(config, folder),
            scheduler=make_scheduler(config, trials),
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            stop=_has_collapsed if config.stopping.collapsed else None,
            callbacks=[bookkeeper],
            failure_config=tune.FailureConfig(max_failures=config.pretrain.max_failures),
            verbose=0,
        ),
    )
    # For restoring the tuner, which is never done; it contains the server's password.
    (folder / "tune" / name / "tuner.pkl").unlink(missing_ok=True)
    _fit(tuner)


def reopen_failed(config: SweepConfig, folder: AnyPath) -> None:
    """Reopens failed trials, as many as `num_trials` leaves room for."""
    trials = read_trials(folder)
    failed = [trial for trial in trials if trial.status == "failed"]
    room = num_trials(config) - (len(trials) - len(failed))  # num_trials may be lower than before
    for trial in failed[: max(room, 0)]:
        reopen_trial(folder, trial.number)


def _fit(tuner: tune.Tuner) -> None:
    """Runs the trials; their results are read from their folders."""
    try:
        tuner.fit()
    except RayTaskError:  # raised by code in a task: a bug keeps its traceback
        raise
    except (tune.TuneError, RayError) as error:
        # Tune raises what it catches in its loop again, with the traceback as text.
        cause = error.__context__ if isinstance(error, tune.TuneError) else None
        cause = cause or error
        logger.info("where it failed", exc_info=error)
        raise JobFailed(
            f"the sweep was interrupted by {type(cause).__name__}: {one_line(cause).rstrip('.')}. "
            "Trials and their checkpoints stay; the same command continues the sweep"
        ) from error


def _has_collapsed(_trial_id: str, result: Mapping[Any, Any]) -> bool:
    return bool(result.get("collapse"))


class _Bookkeeper(tune.Callback):
    """Records how trials end, closes their MLflow runs, and reports the progress."""

    def __init__(
        self, config: SweepConfig, folder: AnyPath, run: RunRef, on_progress: OnProgress
    ) -> None:
        self._config, self._folder, self._run = config, folder, run
        self._on_progress = on_progress

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the progress, which belongs to this process: Tune pickles its callbacks."""
        return self.__dict__ | {"_on_progress": ignore_progress}

    def on_trial_start(self, *_: Any, **_info: Any) -> None:
        """Called when a trial starts or continues."""
        self.say()

    def on_trial_result(self, *_: Any, **_info: Any) -> None:
        """Called when a trial has reached a rung."""
        self.say()

    def on_trial_complete(self, *_: Any, **info: Any) -> None:
        """Called when a trial has completed or was stopped."""
        trial = info["trial"]
        self._end(trial.config["number"], *trial_outcome(self._config, trial.last_result))

    def on_trial_error(self, *_: Any, **info: Any) -> None:
        """Called when a trial has failed more often than allowed."""
        trial = info["trial"]
        if read_trial(self._folder, trial.config["number"]).status != "running":
            return  # the trial had already ended; what failed came after it
        error = redacted(str(trial.get_error() or "it died")).strip()
        self._end(trial.config["number"], "failed", error.splitlines()[-1][:300])

    def _end(self, number: int, status: Status, reason: str) -> None:
        end_trial(self._folder, number, status, reason)
        discard_weights(trial_folder(self._folder, number))  # a stopped trial is killed
        close_trial(self._run, self._folder, read_trial(self._folder, number))
        self.say()

    def say(self) -> None:
        """Reports the progress; rungs of running trials count as fractions of a trial."""
        trials = read_trials(self._folder)
        best = best_trial(self._config, trials)
        note = ""
        if best is not None:
            note = f"best {best.name}: {last_objective(self._config, best):.1%}"
        self._on_progress(trials_done(self._config, trials), num_trials(self._config), note)


def trial_outcome(config: SweepConfig, last_result: dict[str, Any]) -> tuple[Status, str]:
    """Returns the status and the reason of a trial that Tune has finished."""
    if FAILURE in last_result:
        return "failed", last_result[FAILURE]
    rung, collapse = last_result.get("rung", 0), last_result.get("collapse")
    # Also at the last rung: a trial that has collapsed by then has no result.
    if config.stopping.collapsed and collapse:
        return "collapsed", f"at rung {rung}: {collapse}"
    if rung == config.scoring.num_rungs:
        return "completed", f"{_HAD_COLLAPSED}: {collapse}" if collapse else ""
    return "stopped", f"at rung {rung} of {config.scoring.num_rungs} by {config.stopping.kind}"
