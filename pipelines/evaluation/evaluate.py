"""Scores the frozen features of encoders, beside those of the same ones before training.

`evaluate` extracts features in a Ray task; of few clips the driver fits the classifiers, of many
clips or folds other tasks do.

Protocol: XKD, arXiv:2211.13929, section 5 (frozen encoder, mean of patch tokens, windows averaged).
"""

import time
from dataclasses import asdict, dataclass

import numpy as np
import ray
from mlflow.entities import Metric

from pipelines.config.evaluate import EvaluateConfig, EvaluateSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.joined import open_datasets
from pipelines.errors import UserError
from pipelines.evaluation.checks import Sources, clip_mistakes, encoders_of
from pipelines.evaluation.choice import Chosen
from pipelines.evaluation.features import Features, extract
from pipelines.evaluation.finetune import fine_tuner
from pipelines.evaluation.official import (
    choose_clips,
    official_share,
    share_values,
)
from pipelines.evaluation.outcomes import OUTCOMES_FILE, Outcomes
from pipelines.evaluation.probes.fit_tasks import StoredFeatures
from pipelines.evaluation.probes.folds import score_folds
from pipelines.evaluation.scores import FeatureScores, Scores
from pipelines.evaluation.shard_features import DONE_FOLDER, FeatureWorker, shard_parts
from pipelines.evaluation.tasks import all_cpus
from pipelines.files import locked, replacing, scratch_folder, write_json
from pipelines.ingest.unit_graph import run_units
from pipelines.progress import OnProgress, watched_board
from pipelines.storage import AnyPath, path_of
from pipelines.tracking.runs import RunRef, log_dataset, open_run, tracked

_SCORES_FILE = "scores.json"
_FEATURES_FILE = "features.npz"
CLIPS_OF_ONE_PROCESS = 4096
_METRICS_AT_ONCE = 500
"""MLflow takes 1,000 in one request."""


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation."""

    scores: Scores
    outcomes: Outcomes
    features: Features
    run: RunRef
    scores_file: AnyPath


def evaluate(
    config: EvaluateConfig,
    sources: Sources,
    *,
    on_progress: OnProgress,
    parent: RunRef | None = None,
) -> Evaluation:
    """Scores encoders; Ray must be connected.

    Raises:
        UserError: If the clips are not of the rates that an encoder takes.
    """
    dataset = open_datasets(config.dataset)
    if mistakes := clip_mistakes(config, encoders_of(sources), dataset):
        raise UserError(mistakes[0])
    output = path_of(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with tracked(open_run(config, "evaluate", config.name, parent=parent)) as run:
        log_dataset(
            run,
            dataset_id=dataset.dataset_id,
            path=dataset.path,
            num_clips=dataset.num_clips,
            context="evaluation",
        )
        stored = _extract(sources, config, on_progress)
        features = stored.features
        tuner = None
        if "finetune" in config.measures:
            tuner = fine_tuner(sources["trained"], config.dataset, _settings(config))
        settings = _settings(config)
        many = len(features.clip_ids) * max(1, len(features.folds)) > CLIPS_OF_ONE_PROCESS
        found, outcomes = score_folds(features, settings, tuner, stored.fit_all if many else None)
        scores = _scores(config, sources, dataset, run, found)
        write_json(output / _SCORES_FILE, scores.to_json())
        with replacing(output / _FEATURES_FILE) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **features.arrays())
        outcomes.write(output / OUTCOMES_FILE)
        log_figures(run, scores.found)
        for name in (_SCORES_FILE, OUTCOMES_FILE):
            run.log_file(output / name)
    return Evaluation(scores, outcomes, features, run, output / _SCORES_FILE)


def _scores(
    config: EvaluateConfig,
    sources: Sources,
    dataset: ClipDataset,
    run: RunRef,
    found: FeatureScores,
) -> Scores:
    trained, reference = sources["trained"], sources.get("reference", ())
    first = trained[0]
    share = official_share(dataset, config, config.official) if config.official else None
    marks = share.marks() if share else ()
    if config.dataset_id and config.dataset_id != dataset.dataset_id:
        marks = (*marks, f"dataset {dataset.dataset_id[:12]}, not {config.dataset_id[:12]}")
    return Scores(
        checkpoint=first.path if first.kind == "checkpoint" else " ".join(o.given for o in trained),
        step=first.step,
        pretrain_run_id=first.run_id,
        evaluate_run_id=run.run_id,
        dataset_id=dataset.dataset_id,
        role=first.role,
        num_windows=config.num_windows,
        found=found,
        reference=" ".join(one.given for one in reference),
        official=share_values(share),
        marks=marks,
    )


def log_figures(run: RunRef, found: FeatureScores) -> None:
    """Logs every figure with its bounds, and the gains over the untrained network."""
    figures = {f"evaluation/{path}": one for path, one in found.figures().items()}
    figures |= {f"evaluation/{path}": one for path, one in found.gain_figures().items()}
    now = int(time.time() * 1000)
    metrics = []
    for path, one in figures.items():
        values = {path: one.value, f"{path}/low": one.low, f"{path}/high": one.high}
        metrics += [Metric(name, v, now, 0) for name, v in values.items() if v is not None]
    for begin in range(0, len(metrics), _METRICS_AT_ONCE):
        run.client().log_batch(run.run_id, metrics=metrics[begin : begin + _METRICS_AT_ONCE])


def _extract(sources: Sources, config: EvaluateConfig, on_progress: OnProgress) -> StoredFeatures:
    """Extracts features: in one task that has all CPUs or a GPU, or first by many workers.

    Ray starts its workers in seconds, so clips for which one process needs no longer than that stay
    in one; both read and write the same cache.
    """
    settings = _settings(config)
    cache = path_of(config.cache or f"{config.output}/features")
    cache.mkdir(parents=True, exist_ok=True)
    dataset = open_datasets(config.dataset)
    chosen = choose_clips(dataset, settings, config.official)
    if config.num_workers or len(chosen.rows) > CLIPS_OF_ONE_PROCESS:
        _fill_cache(sources, config, settings, dataset, chosen, cache, on_progress)
    task = ray.remote(num_returns="streaming")(extract)
    task = task.options(num_gpus=1) if config.use_gpu else task.options(num_cpus=all_cpus())
    with watched_board(on_progress) as board:
        return StoredFeatures.receive(
            task.remote(dict(sources), config.dataset, settings, config.official, cache, board)
        )


def _settings(config: EvaluateConfig) -> EvaluateSettings:
    return EvaluateSettings.model_validate(
        config.model_dump(include=set(EvaluateSettings.model_fields))
    )


def _fill_cache(
    sources: Sources,
    config: EvaluateConfig,
    settings: EvaluateSettings,
    dataset: ClipDataset,
    chosen: Chosen,
    cache: AnyPath,
    on_progress: OnProgress,
) -> None:
    """Embeds every shard on a pool of workers, each exactly once into the cache."""
    with locked(cache / "lock", f"cache ({cache})"), scratch_folder(cache) as scratch:
        (scratch / DONE_FOLDER).mkdir()
        progress = run_units(
            [asdict(part) for part in shard_parts(dataset, chosen)],
            FeatureWorker,
            (
                dict(sources),
                config.dataset,
                settings.model_dump(mode="json"),
                config.official.model_dump(mode="json") if config.official else None,
                str(cache),
                str(scratch),
            ),
            num_workers=config.num_workers,
            num_gpus=1 if config.use_gpu else 0,
            output=scratch,
            rows_folder=DONE_FOLDER,
            scratch=scratch,
        )
        for done in progress:
            on_progress(done.clips, len(chosen.rows), "")
