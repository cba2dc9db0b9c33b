"""`python -m ray_jobs.sweep CONFIG.yaml`: finds settings by many short trainings.

With `final`, the best settings are then trained at full length, scored and registered. Everything
is logged under one MLflow run. The same command continues where an earlier one stopped.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial

import torch
from rich.console import RenderableType
from rich.text import Text

from pipelines.config.base import locations_of, settings_without_password
from pipelines.config.describe import may_change
from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.promote import PromoteConfig
from pipelines.config.sweep import SweepConfig
from pipelines.dataset.joined import open_datasets
from pipelines.errors import UserError
from pipelines.evaluation.scores import FeatureScores
from pipelines.quantities import counted, duration
from pipelines.registry.promote import Registered
from pipelines.report.sweep_page import SweepRecord, write_sweep_report
from pipelines.storage import AnyPath
from pipelines.sweep.checks import (
    DATASET_IDS,
    check_sweep,
    dataset_ids,
    scored_split,
    sweep_folder,
    trials_at_once,
)
from pipelines.sweep.init_versions import INIT_VERSIONS, init_versions, with_versions
from pipelines.sweep.results import by_score, format_value, last_objective, side_score
from pipelines.sweep.search import num_trials
from pipelines.sweep.space_checks import space_mistakes
from pipelines.sweep.sweep import SweepResult, sweep
from pipelines.sweep.trial_files import Trial, read_trials
from pipelines.sweep.winner import best_values, write_winner
from pipelines.tracking.run_folder import RunFolder
from pipelines.tracking.runs import RunRef, tracked
from ray_jobs.cli.checks import check_gpus, environment_mistakes, gpu_mistakes, messages
from ray_jobs.cli.cluster import connected, ray_address
from ray_jobs.cli.console import FittedTable, StageProgress, table
from ray_jobs.cli.job import Job, JobPlan, run_job
from ray_jobs.cli.jobs import JOBS
from ray_jobs.evaluate import evaluate_stage, score_table
from ray_jobs.pretrain import pretrain_stage
from ray_jobs.promote import promote_stage, registered_text

_FINAL = "final"
_TRIALS_SHOWN = 12
"""Number of trials that a terminal shows while a sweep runs."""


def plan(config: SweepConfig) -> JobPlan:
    """Returns what the job reads and writes."""
    folder = sweep_folder(config)
    writes = [f"{folder}/{{trials,report.html,best.yaml}}"]
    if config.final:
        prefix, alias = config.final.promote.model_prefix, config.final.promote.alias
        writes += [f"{folder}/{_FINAL}", f"models:/{prefix}-{{video,audio}}@{alias}"]
    problems = space_mistakes(config)
    try:
        config = with_versions(config, init_versions(config))
    except UserError as error:
        problems = [*problems, str(error)]
    reads = (*locations_of(config.dataset), *locations_of(config.scoring.dataset or ()))
    return JobPlan(
        reads=tuple(dict.fromkeys(reads)),
        writes=tuple(writes),
        mistakes=(
            *problems,
            *(() if problems else check_sweep(config)),
            *messages(lambda: _check_resources(config)),
            *gpu_mistakes(config, _wants_gpu(config)),
            *environment_mistakes(config, str(folder)),
        ),
    )


def _wants_gpu(config: SweepConfig) -> dict[str, bool]:
    is_wanted = config.final is not None and config.final.evaluate.use_gpu
    return {"final.evaluate.use_gpu": is_wanted}


def _check_resources(config: SweepConfig) -> None:
    """Checks the resources of a Ray of its own, which are known before it starts."""
    if ray_address(config.ray) is None:
        cpus = config.ray.num_cpus or os.cpu_count() or 1
        trials_at_once(config, [{"CPU": cpus, "GPU": torch.cuda.device_count()}])


def work(config: SweepConfig) -> None:
    """Runs the sweep, writes the report, and trains the best settings if `final` is set."""
    started = time.monotonic()
    folder = RunFolder(sweep_folder(config))
    final: tuple[FeatureScores, Sequence[Registered]] | None = None
    with (
        folder.locked("sweep"),
        connected(config.ray, dashboard=True),
        tracked(_sweep_run(config, folder)) as run,
    ):
        check_gpus(_wants_gpu(config), config.ray.wait_seconds)  # before the trials
        config = with_versions(config, folder.began_with.get(INIT_VERSIONS, {}))
        result = _sweep_stage(config, run)
        winner = write_winner(config, result)
        run.log_file(winner)
        if config.final:
            final = _final_stage(config, result, run)
        record = SweepRecord(
            config,
            result,
            run,
            winner,
            time.monotonic() - started,
            open_datasets(config.scoring.dataset or config.dataset).dataset_id,
            scored_split(config),
        )
        report = write_sweep_report(folder.path / "report.html", record)
        run.log_file(report)
    print(f"\n{config.name} is complete after {duration(time.monotonic() - started)}")
    print(_trial_table(config, result.trials))
    if final:
        print(score_table(final[0]))
        print(registered_text(final[1]))
    print(f"  best: {result.best.name}, {winner}")
    if result.best.reason:
        print(f"  warning: {result.best.name} completed, {result.best.reason}")
    print(f"  report: {report}")


def _sweep_run(config: SweepConfig, folder: RunFolder) -> RunRef:
    # Older sweeps lack them; the current IDs count from now on.
    clips = folder.began_with.get(DATASET_IDS) or dataset_ids(config)
    keep = {
        "config": settings_without_password(config),
        DATASET_IDS: clips,
        INIT_VERSIONS: init_versions(config),
    }
    return folder.open_run(config, "sweep", config.name, keep=keep)


def _sweep_stage(config: SweepConfig, run: RunRef) -> SweepResult:
    folder = sweep_folder(config)
    details = partial(_trials_on_terminal, config, folder)
    progress = StageProgress("sweep", "trials", details)
    result = sweep(config, run, on_progress=progress)
    counts: dict[str, int] = {}
    for trial in result.trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    progress.finish(f"{counted(num_trials(config), 'trial')}: {said}")
    return result


def _final_stage(
    config: SweepConfig, result: SweepResult, run: RunRef
) -> tuple[FeatureScores, Sequence[Registered]]:
    """The best settings at full length, scored and registered."""
    assert config.final is not None
    folder = result.folder / _FINAL
    shared = {"tracking": config.tracking, "ray": config.ray}
    training = pretrain_stage(final_config(config, result.best, folder), run)
    evaluation = evaluate_stage(
        EvaluateConfig(
            **config.final.evaluate.model_dump(),
            **shared,
            checkpoint=str(training.checkpoint),
            dataset=config.scoring.dataset or config.dataset,
            output=str(folder / "evaluate"),
        ),
        run,
    )
    registered = promote_stage(
        PromoteConfig(
            **config.final.promote.model_dump(),
            **shared,
            checkpoint=str(training.checkpoint),
            scores=str(evaluation.scores_file),
        ),
        run,
    )
    return evaluation.scores.found, registered


def final_config(config: SweepConfig, best: Trial, folder: AnyPath) -> PretrainConfig:
    """Returns the settings of the final training, whose name identifies the best values.

    More trials or epochs may change the best values, which then name another training.
    """
    values = best_values(config, best)
    trained = {
        name: value for name, value in values.items() if not may_change(PretrainConfig, name)
    }
    digest = hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()
    return PretrainConfig(
        **values,
        name=f"best-{digest[:8]}",
        dataset=config.dataset,
        output=str(folder / "pretrain"),
        tracking=config.tracking,
        ray=config.ray,
    )


def _trials_on_terminal(config: SweepConfig, folder: AnyPath) -> RenderableType:
    """Returns the running and the best trials, as many as a terminal shows."""
    ranked = by_score(config, read_trials(folder))
    if not ranked:
        return Text("no trial has started", style="dim")
    running = [trial for trial in ranked if trial.status == "running"]
    ended = [trial for trial in ranked if trial.status != "running"]
    shown = [*running, *ended][:_TRIALS_SHOWN]
    hidden = len(ranked) - len(shown)
    return FittedTable(_trial_rows(config, shown), f"and {hidden} more" if hidden else "")


def _trial_table(config: SweepConfig, trials: Sequence[Trial]) -> str:
    return table(_trial_rows(config, by_score(config, trials)))


def _trial_rows(config: SweepConfig, trials: Sequence[Trial]) -> list[tuple[str, ...]]:
    """Returns a header and the trials in their order."""
    rows: list[tuple[str, ...]] = [
        ("trial", "status", "rungs", "video", "audio", "objective", "values")
    ]
    for trial in trials:
        values = ", ".join(
            f"{key.split('.')[-1]} {format_value(v)}" for key, v in trial.values.items()
        )
        video, audio = (
            f"{side_score(config, trial.rungs[-1], side):.1%}" if trial.rungs else ""
            for side in ("video", "audio")
        )
        score = f"{last_objective(config, trial):.1%}" if trial.rungs else ""
        rungs = f"{max(len(trial.rungs) - 1, 0)}"
        is_marked = trial.status == "completed" and trial.reason
        status = "completed, collapsed" if is_marked else trial.status
        rows.append((trial.name, status, rungs, video, audio, score, values[:100]))
    return rows


JOB = Job(
    summary=JOBS["sweep"],
    schema=SweepConfig,
    plan=plan,
    work=work,
    how_to_go_on="Trials and checkpoints are kept; the same command continues with the rest.",
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))
