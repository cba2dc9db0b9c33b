"""`python -m ray_jobs.sweep CONFIG.yaml`: many short trainings find the settings of a long one.

The sweep, its report, and with `final` the best settings at full length, scored and registered,
all under one run of MLflow. The same command goes on where an earlier one stopped.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.pretrain import PretrainConfig, PretrainSettings
from pipelines.config.promote import PromoteConfig
from pipelines.config.sweep import SweepConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.evaluation.evaluate import check_gpu
from pipelines.files import locked, write_json
from pipelines.registry.promote import Registered
from pipelines.report.sweep_page import SweepRecord, write_sweep_report, write_winner
from pipelines.sweep.checks import (
    DATASET_IDS,
    check_sweep,
    dataset_ids,
    scored_split,
    sweep_folder,
    trials_at_once,
)
from pipelines.sweep.results import by_score, last_objective, shown, side_score
from pipelines.sweep.run_trial import best_values, pretrain_values
from pipelines.sweep.search import num_trials
from pipelines.sweep.space import combinations, edge_cases, overlaps, settings_of
from pipelines.sweep.sweep import SweepResult, sweep
from pipelines.sweep.trial_files import Trial
from pipelines.tracking.tracker import RunRef, kept_settings, open_run, tracked
from pipelines.training.checks import FREE_TO_CHANGE, RUN_FILE
from pipelines.training.pretrain import LOCK_FILE
from ray_jobs.cli.checks import messages, surroundings
from ray_jobs.cli.cluster import connected, ray_address
from ray_jobs.cli.console import StageProgress, duration, table
from ray_jobs.cli.main import Job, Plan, run_job
from ray_jobs.cli.settings import mistakes_in
from ray_jobs.evaluate import evaluate_stage, gpu_mistakes, score_table
from ray_jobs.pretrain import pretrain_stage
from ray_jobs.promote import in_words as registered_in_words
from ray_jobs.promote import promote_stage

NUM_COMBINATIONS = 200
"""Combinations of the space that are tried out before anything starts."""
FIXED = ("num_workers", "use_gpu", "cpus_per_worker", "parallelism")
"""Settings of resources: trials run side by side, so all ask for the same."""
LEFT_OUT = ("max_seconds",)
"""Settings that no trial may have."""
FINAL = "final"


def plan(config: SweepConfig) -> Plan:
    """What a sweep reads and writes."""
    folder = sweep_folder(config)
    writes = [f"{folder}/{{trials,report.html,best.yaml}}"]
    if config.final:
        prefix, alias = config.final.promote.model_prefix, config.final.promote.alias
        writes += [f"{folder}/{FINAL}", f"models:/{prefix}-{{video,audio}}@{alias}"]
    problems = space_mistakes(config)
    return Plan(
        reads=tuple({config.dataset: 0, config.scoring.dataset or config.dataset: 0}),
        writes=tuple(writes),
        mistakes=(
            *problems,
            *(() if problems else check_sweep(config)),
            *messages(lambda: _check_resources(config)),
            *gpu_mistakes(config, {"final.evaluate.use_gpu": _scores_on_gpu(config)}),
            *surroundings(config, str(folder)),
        ),
    )


def _scores_on_gpu(config: SweepConfig) -> bool:
    return config.final is not None and config.final.evaluate.use_gpu


def _check_resources(config: SweepConfig) -> None:
    """Of a Ray of its own, whose resources are known before it starts."""
    if ray_address(config.ray) is None:
        cpus = config.ray.num_cpus or os.cpu_count() or 1
        trials_at_once(config, [{"CPU": cpus, "GPU": torch.cuda.device_count()}])


def space_mistakes(config: SweepConfig) -> list[str]:
    """Everything in the space that gives no valid training, each once."""
    found = _fixed_mistakes(config) + overlaps(config.space) + _edge_mistakes(config)
    found += _path_mistakes(config)
    found = found or _combination_mistakes(config)
    if not found and config.final and config.final.epochs:
        values = _values(config, {}) | {"epochs": config.final.epochs}
        found = [f"final.epochs: {mistake}" for mistake in mistakes_in(values, PretrainSettings)]
    return list(dict.fromkeys(found))


def _fixed_mistakes(config: SweepConfig) -> list[str]:
    rules = dict.fromkeys(FIXED, "must be set under pretrain, the same for all trials")
    rules |= dict.fromkeys(LEFT_OUT, "must not be set in a sweep")
    return [
        f"space.{key}: {name} {rules[name]}"
        for key, domain in config.space.items()
        for name in chain((key,), *(domain.bundles or {}).values())
        if name in rules
    ]


def _edge_mistakes(config: SweepConfig) -> list[str]:
    """Of each end and option by itself."""
    found = []
    for key, value, values in edge_cases(config.space):
        for mistake in mistakes_in(_values(config, values), PretrainSettings):
            at = "" if "is not a setting" in mistake else f" at {value}"
            found.append(f"space.{key}{at}: {mistake}")
    return found


def _path_mistakes(config: SweepConfig) -> list[str]:
    """Paths of options are read in trials, which have working directories of their own."""
    found = []
    for key, _, values in edge_cases(config.space):
        exclude = settings_of(config.space, values).get("exclude")
        if isinstance(exclude, str) and not os.path.isabs(exclude):
            found.append(f"space.{key}: exclude ({exclude}) must be an absolute path in a space")
    return found


def _combination_mistakes(config: SweepConfig) -> list[str]:
    """Of the first combination that is not valid, as two settings that do not go together."""
    for values in combinations(config.space, NUM_COMBINATIONS, config.search.seed):
        mistakes = mistakes_in(_values(config, values), PretrainSettings)
        if mistakes:
            return [f"space has combinations that are not valid, as {values}: {mistakes[0]}"]
    return []


def _values(config: SweepConfig, values: dict[str, Any]) -> dict[str, Any]:
    return pretrain_values(config, Trial(0, values))


def work(config: SweepConfig) -> None:
    """Sweeps, reports, and trains the best settings if asked to; says what came out."""
    started = time.monotonic()
    folder = sweep_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    final: tuple[dict[str, Any], Sequence[Registered]] | None = None
    with (
        locked(folder / LOCK_FILE, f"sweep ({folder})"),
        connected(config.ray, dashboard=True),
        tracked(_sweep_run(config, folder)) as run,
    ):
        if _scores_on_gpu(config):  # told before the trials, not after them
            check_gpu("final.evaluate.use_gpu")
        result = _sweep_stage(config, run)
        winner = write_winner(config, result)
        run.client().log_artifact(run.run_id, str(winner))
        if config.final:
            final = _final_stage(config, result, run)
        record = SweepRecord(
            config,
            result,
            run,
            winner,
            time.monotonic() - started,
            ClipDataset.open(config.scoring.dataset or config.dataset).dataset_id,
            scored_split(config),
        )
        report = write_sweep_report(folder / "report.html", record)
        run.client().log_artifact(run.run_id, str(report))
    print(f"\n{config.name} is complete after {duration(time.monotonic() - started)}")
    print(_trial_table(config, result.trials))
    if final:
        print(score_table(final[0]))
        print(registered_in_words(final[1]))
    print(f"  best: {result.best.name}, {winner}")
    if result.best.reason:
        print(f"  mind: {result.best.name} completed, {result.best.reason}")
    print(f"  report: {report}")


def _sweep_run(config: SweepConfig, folder: Path) -> RunRef:
    file = folder / RUN_FILE
    there = json.loads(file.read_text()) if file.exists() else {}
    # An earlier version did not keep them: then those of now count from here on.
    clips = there.get(DATASET_IDS) or dataset_ids(config)
    run = open_run(config, "sweep", config.name, run_id=there.get("run_id", ""))
    values = {"run_id": run.run_id, "config": kept_settings(config), DATASET_IDS: clips}
    write_json(file, values)
    return run


def _sweep_stage(config: SweepConfig, run: RunRef) -> SweepResult:
    progress = StageProgress("sweep", "trials")
    result = sweep(config, run, on_progress=progress)
    counts: dict[str, int] = {}
    for trial in result.trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    progress.finish(f"{num_trials(config)} trials: {said}")
    return result


def _final_stage(
    config: SweepConfig, result: SweepResult, run: RunRef
) -> tuple[dict[str, Any], Sequence[Registered]]:
    """The best settings at full length, scored and registered."""
    assert config.final is not None
    folder = result.folder / FINAL
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
    return evaluation.scores, registered


def final_config(config: SweepConfig, best: Trial, folder: Path) -> PretrainConfig:
    """The training of the best settings at full length, which its name tells from others.

    More trials or epochs may change what is best; a training that is there is then another one.
    """
    values = best_values(config, best)
    trained = {name: value for name, value in values.items() if name not in FREE_TO_CHANGE}
    digest = hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()
    return PretrainConfig(
        **values,
        name=f"best-{digest[:8]}",
        dataset=config.dataset,
        output=str(folder / "pretrain"),
        tracking=config.tracking,
        ray=config.ray,
    )


def _trial_table(config: SweepConfig, trials: Sequence[Trial]) -> str:
    """The trials by what they came to, the best first."""
    rows = [("trial", "status", "rungs", "video", "audio", "objective", "values")]
    for trial in by_score(config, trials):
        values = ", ".join(f"{key.split('.')[-1]} {shown(v)}" for key, v in trial.values.items())
        video, audio = (
            f"{side_score(config, trial.rungs[-1], side):.1%}" if trial.rungs else ""
            for side in ("video", "audio")
        )
        score = f"{last_objective(config, trial):.1%}" if trial.rungs else ""
        rungs = f"{max(len(trial.rungs) - 1, 0)}"
        is_marked = trial.status == "completed" and trial.reason
        status = "completed, collapsed" if is_marked else trial.status
        rows.append((trial.name, status, rungs, video, audio, score, values[:100]))
    return table(rows)


JOB = Job(
    name="sweep",
    about="Many short trainings find the settings of a long one: Ray Tune over Ray Train.",
    schema=SweepConfig,
    plan=plan,
    work=work,
    how_to_go_on="Trials and their checkpoints stay; the same command goes on with those left.",
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))
