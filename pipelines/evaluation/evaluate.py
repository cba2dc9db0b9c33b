"""Scores the frozen features of encoders, beside those of the same ones before training.

`evaluate` extracts features in a Ray task and scores them in the driver with k-NN and a linear
probe subject.

Protocol: XKD, arXiv:2211.13929, section 5 (frozen encoder, mean of patch tokens, windows averaged).
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import ray
from mlflow.entities import Metric

from pipelines.config.evaluate import EvaluateConfig, EvaluateSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.joined import open_datasets
from pipelines.errors import UserError
from pipelines.evaluation.features import Features, extract
from pipelines.evaluation.folds import score_folds
from pipelines.evaluation.networks import EncoderSource
from pipelines.evaluation.official import check_official, official_share, share_values
from pipelines.evaluation.outcomes import OUTCOMES_FILE, Outcomes
from pipelines.evaluation.scores import FeatureScores, Scores
from pipelines.files import replacing, write_json
from pipelines.progress import OnProgress, watched_board
from pipelines.storage import AnyPath, path_of
from pipelines.tracking.runs import RunRef, log_dataset, open_run, tracked
from xkd_core.config import ModelConfig

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


Sources = Mapping[str, Sequence[EncoderSource]]
"""Where the encoders of `trained`, `untrained` and `reference` are."""


def check_evaluate(config: EvaluateConfig, sources: Sources) -> list[str]:
    """Returns everything that prevents an evaluation, found without starting anything."""
    try:
        dataset = open_datasets(config.dataset)
    except UserError as error:
        return [str(error)]
    models = _models(sources)
    return (
        _clip_mistakes(config, models, dataset)
        or check_official(config, dataset)
        or _split_mistakes(config, dataset)
        or _size_mistakes(config, models)
        or _token_mistakes(config, models, dataset)
    )


def networks_to_score(
    config: EvaluateConfig, trained: Sequence[EncoderSource], reference: Sequence[EncoderSource]
) -> dict[str, Sequence[EncoderSource]]:
    """Returns the networks of an evaluation by name."""
    found = {"trained": trained}
    if config.untrained_baseline:
        found["untrained"] = trained
    return found | ({"reference": reference} if reference else {})


def _models(sources: Sources) -> dict[tuple[str, str], tuple[str, ModelConfig]]:
    """Returns what each encoder takes, by network and modality, and how the user named it."""
    return {
        (name, modality): (one.given, one.model_config(modality))
        for name, network in sources.items()
        if name != "untrained"
        for one in network
        for modality in one.modalities
    }


_Models = Mapping[tuple[str, str], tuple[str, ModelConfig]]


def _split_mistakes(config: EvaluateConfig, dataset: ClipDataset) -> list[str]:
    """Returns why there are no clips to extract features of; they need no labels for that."""
    wanted = (*config.train_splits, *config.test_splits)
    if np.isin(dataset.index.split, wanted).any() or _lists(config):
        return []
    there = ", ".join(sorted(set(dataset.index.split.tolist()))) or "none"
    return [
        f"dataset ({config.dataset}) has no clip in train_splits or test_splits "
        f"({', '.join(wanted)}); its splits: {there}"
    ]


def _lists(config: EvaluateConfig) -> str | None:
    return config.official.lists if config.official else None


def _size_mistakes(config: EvaluateConfig, models: _Models) -> list[str]:
    """Returns why an encoder cannot take crops of `video_size`."""
    for (_, modality), (given, model) in models.items():
        patch = model.video.patch_size
        if modality == "video" and config.video_size and config.video_size % patch:
            return [
                f"video_size ({config.video_size}) must be a multiple of {patch}, the patches of "
                f"{given}"
            ]
    return []


def _token_mistakes(config: EvaluateConfig, models: _Models, dataset: ClipDataset) -> list[str]:
    """Returns why the tokens of an attentive probe would not fit into memory."""
    if "attentive" not in config.measures:
        return []
    clips = int(np.isin(dataset.index.split, (*config.train_splits, *config.test_splits)).sum())
    numbers = 0
    for (name, modality), (_, model) in models.items():
        side = config.video_size // model.video.patch_size if config.video_size else 0
        grid = getattr(model, modality).grid
        crops = config.num_crops if modality == "video" else 1
        grid = (grid[0], side, side) if side and modality == "video" else grid
        copies = 2 if config.untrained_baseline and name == "trained" else 1
        numbers += math.prod(grid) * crops * model.encoder.width * copies
    size = 2.0 * clips * numbers * config.num_windows / 1e9
    if size <= config.max_tokens_gb:
        return []
    return [
        f"measures (attentive) would keep {size:.1f} GB of tokens of {clips} clips, more than "
        f"max_tokens_gb ({config.max_tokens_gb:g}): set num_windows=1, raise it, or leave out "
        "attentive"
    ]


def _clip_mistakes(config: EvaluateConfig, models: _Models, dataset: ClipDataset) -> list[str]:
    """Returns why scores would mean nothing: the clips differ in rate from an encoder's."""
    for (_, modality), (given, model) in models.items():
        name, wanted, there = (
            ("frame_rate", model.video.frame_rate, dataset.frame_rate)
            if modality == "video"
            else ("sample_rate", model.audio.sample_rate, dataset.sample_rate)
        )
        if wanted != there:
            return [
                f"dataset ({config.dataset}) does not fit {given}: model.{modality}.{name} "
                f"({wanted:g}) must equal the clips' {name} ({there:g})"
            ]
    return []


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
    if mistakes := _clip_mistakes(config, _models(sources), dataset):
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
        features = _extract(sources, config, on_progress)
        found, outcomes = score_folds(features, config)
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


def _extract(sources: Sources, config: EvaluateConfig, on_progress: OnProgress) -> Features:
    settings = EvaluateSettings.model_validate(
        config.model_dump(include=set(EvaluateSettings.model_fields))
    )
    task = (
        ray.remote(num_gpus=1)(extract)
        if config.use_gpu
        else ray.remote(num_cpus=_all_cpus())(extract)
    )
    with watched_board(on_progress) as board:
        return ray.get(task.remote(dict(sources), config.dataset, settings, config.official, board))


def _all_cpus() -> int:
    """Returns the CPUs of the largest node: a task runs on one node."""
    return max(1, int(max(node["Resources"].get("CPU", 1) for node in ray.nodes())))
