"""Scores the frozen features of a checkpoint, beside those of the untrained network.

`evaluate` extracts features in a Ray task and scores them in the driver with k-NN and a linear
probe per modality.

Protocol: XKD, arXiv:2211.13929, section 5 (frozen encoder, mean of patch tokens, windows averaged).
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from mlflow.entities import Metric

from pipelines.config.evaluate import EvaluateConfig, EvaluateSettings
from pipelines.config.pretrain import PretrainConfig, clip_mismatch
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.joined import open_datasets
from pipelines.errors import UserError
from pipelines.evaluation.classifiers import score_with_outcomes
from pipelines.evaluation.features import Features, extract
from pipelines.evaluation.outcomes import OUTCOMES_FILE, Outcomes
from pipelines.evaluation.scores import FeatureScores, Scores
from pipelines.files import replacing, write_json
from pipelines.models.checkpoints import TrainingInfo, find_checkpoint, read_info
from pipelines.progress import OnProgress, watched_board
from pipelines.storage import AnyPath, path_of
from pipelines.tracking.runs import RunRef, log_dataset, open_run, tracked

_SCORES_FILE = "scores.json"
_FEATURES_FILE = "features.npz"
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


def check_evaluate(config: EvaluateConfig) -> list[str]:
    """Returns everything that prevents an evaluation, found without starting anything."""
    found: list[Any] = []
    mistakes = []
    for look in (
        lambda: read_info(find_checkpoint(config.checkpoint)),
        lambda: open_datasets(config.dataset),
    ):
        try:
            found.append(look())
        except UserError as error:
            mistakes.append(str(error))
    return (
        mistakes
        or _clip_mistakes(config, *found)
        or _split_mistakes(config, found[1])
        or _token_mistakes(config, *found)
    )


def _split_mistakes(config: EvaluateConfig, dataset: ClipDataset) -> list[str]:
    """Returns why there are no clips to extract features of; they need no labels for that."""
    wanted = (*config.train_splits, *config.test_splits)
    if np.isin(dataset.index.split, wanted).any():
        return []
    there = ", ".join(sorted(set(dataset.index.split.tolist()))) or "none"
    return [
        f"dataset ({config.dataset}) has no clip in train_splits or test_splits "
        f"({', '.join(wanted)}); its splits: {there}"
    ]


def _token_mistakes(config: EvaluateConfig, info: TrainingInfo, dataset: ClipDataset) -> list[str]:
    """Returns why the tokens of an attentive probe would not fit into memory."""
    if "attentive" not in config.measures:
        return []
    model = PretrainConfig.model_validate(info.config).model
    clips = int(np.isin(dataset.index.split, (*config.train_splits, *config.test_splits)).sum())
    tokens = math.prod(model.video.grid) + math.prod(model.audio.grid)
    networks = 2 if config.untrained_baseline else 1
    size = 2.0 * clips * tokens * config.num_windows * model.encoder.width * networks / 1e9
    if size <= config.max_tokens_gb:
        return []
    return [
        f"measures (attentive) would keep {size:.1f} GB of tokens of {clips} clips, more than "
        f"max_tokens_gb ({config.max_tokens_gb:g}): set num_windows=1, raise it, or leave out "
        "attentive"
    ]


def _clip_mistakes(config: EvaluateConfig, info: TrainingInfo, dataset: ClipDataset) -> list[str]:
    """Returns why scores would mean nothing: the clips differ in rate from the training's."""
    problem = clip_mismatch(
        PretrainConfig.model_validate(info.config),
        frame_rate=dataset.frame_rate,
        sample_rate=dataset.sample_rate,
    )
    return [f"dataset ({config.dataset}) does not fit the checkpoint: {problem}"] if problem else []


def evaluate(
    config: EvaluateConfig, *, on_progress: OnProgress, parent: RunRef | None = None
) -> Evaluation:
    """Scores a checkpoint; Ray must be connected.

    Raises:
        UserError: if the clips are not of the rates that the checkpoint takes.
    """
    checkpoint = find_checkpoint(config.checkpoint)
    info = read_info(checkpoint)
    dataset = open_datasets(config.dataset)
    if mistakes := _clip_mistakes(config, info, dataset):
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
        features = _extract(checkpoint, config, on_progress)
        found, outcomes = score_with_outcomes(features, config)
        scores = Scores(
            checkpoint=str(checkpoint),
            step=info.next_step,
            pretrain_run_id=info.run_id,
            evaluate_run_id=run.run_id,
            dataset_id=dataset.dataset_id,
            role=config.role,
            num_windows=config.num_windows,
            found=found,
        )
        write_json(output / _SCORES_FILE, scores.to_json())
        with replacing(output / _FEATURES_FILE) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **features.arrays())
        outcomes.write(output / OUTCOMES_FILE)
        log_figures(run, scores.found)
        for name in (_SCORES_FILE, OUTCOMES_FILE):
            run.log_file(output / name)
    return Evaluation(scores, outcomes, features, run, output / _SCORES_FILE)


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


def _extract(checkpoint: AnyPath, config: EvaluateConfig, on_progress: OnProgress) -> Features:
    settings = EvaluateSettings.model_validate(
        config.model_dump(include=set(EvaluateSettings.model_fields))
    )
    task = (
        ray.remote(num_gpus=1)(extract)
        if config.use_gpu
        else ray.remote(num_cpus=_all_cpus())(extract)
    )
    with watched_board(on_progress) as board:
        return ray.get(task.remote(str(checkpoint), config.dataset, settings, board))


def _all_cpus() -> int:
    """Returns the CPUs of the largest node: a task runs on one node."""
    return max(1, int(max(node["Resources"].get("CPU", 1) for node in ray.nodes())))
