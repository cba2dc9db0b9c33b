"""How good frozen features are: k-NN and a linear probe per modality, beside the untrained network.

`evaluate` extracts features in a Ray task and scores them in the driver. Scores carry the id of
the dataset they were measured on; two scores are comparable only if these ids are equal.

Protocol: XKD, arXiv:2211.13929, section 5 (frozen encoder, mean of patch tokens, windows averaged).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.config.evaluate import EvaluateConfig, EvaluateSettings
from pipelines.config.pretrain import PretrainConfig, clip_mismatch
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import UserError
from pipelines.evaluation.features import Features, extract
from pipelines.files import write_json
from pipelines.models.checkpoints import TrainingInfo, find_checkpoint, read_info
from pipelines.progress import OnProgress, watched_board
from pipelines.tracking.tracker import RunRef, log_dataset, open_run, tracked
from xkd_core.probes import accuracy, fit_linear_probe, knn_predict, per_class_accuracy

SCORES_FILE = "scores.json"
FEATURES_FILE = "features.npz"
MODALITIES = ("video", "audio")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    scores: dict[str, Any]
    """Ready for JSON; `modalities` is empty, and `reason` says why, where nothing can be scored."""
    features: Features
    run: RunRef
    scores_file: Path


def check_evaluate(config: EvaluateConfig) -> list[str]:
    """All that stands in the way of an evaluation, found without starting anything."""
    found: list[Any] = []
    mistakes = []
    for look in (
        lambda: read_info(find_checkpoint(config.checkpoint)),
        lambda: ClipDataset.open(config.dataset),
    ):
        try:
            found.append(look())
        except UserError as error:
            mistakes.append(str(error))
    return mistakes or _clip_mistakes(config, *found) or _split_mistakes(config, found[1])


def _split_mistakes(config: EvaluateConfig, dataset: ClipDataset) -> list[str]:
    """Why there is nothing to look at; clips without labels are, though not scored."""
    wanted = (*config.train_splits, *config.test_splits)
    if np.isin(dataset.index.split, wanted).any():
        return []
    there = ", ".join(sorted(set(dataset.index.split.tolist()))) or "none"
    return [
        f"dataset ({config.dataset}) has no clip in train_splits or test_splits "
        f"({', '.join(wanted)}); its splits: {there}"
    ]


def _clip_mistakes(config: EvaluateConfig, info: TrainingInfo, dataset: ClipDataset) -> list[str]:
    """Why these clips are not of the kind that was trained on: their scores would mean nothing."""
    problem = clip_mismatch(
        PretrainConfig.model_validate(info.config),
        frame_rate=dataset.frame_rate,
        sample_rate=dataset.sample_rate,
    )
    return [f"dataset ({config.dataset}) does not fit the checkpoint: {problem}"] if problem else []


def evaluate(
    config: EvaluateConfig, *, on_progress: OnProgress, parent: RunRef | None = None
) -> Evaluation:
    """Scores a checkpoint; Ray is connected.

    Raises:
        UserError: if the clips are not of the rates that the checkpoint takes, or there is no GPU.
    """
    checkpoint = find_checkpoint(config.checkpoint)
    info = read_info(checkpoint)
    dataset = ClipDataset.open(config.dataset)
    if mistakes := _clip_mistakes(config, info, dataset):
        raise UserError(mistakes[0])
    if config.use_gpu:
        check_gpu("use_gpu")
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with tracked(open_run(config, "evaluate", config.name, parent=parent)) as run:
        log_dataset(
            run,
            dataset_id=dataset.dataset_id,
            path=config.dataset,
            num_clips=dataset.num_clips,
            context="evaluation",
        )
        features = _extract(checkpoint, config, on_progress)
        scores = {
            "checkpoint": str(checkpoint),
            "step": info.next_step,
            "pretrain_run_id": info.run_id,
            "evaluate_run_id": run.run_id,
            "dataset_id": dataset.dataset_id,
            "role": config.role,
            "num_windows": config.num_windows,
            **score(features, config),
        }
        write_json(output / SCORES_FILE, scores)
        np.savez(output / FEATURES_FILE, allow_pickle=False, **features.arrays())
        client = run.client()
        for name, value in flat_scores(scores).items():
            client.log_metric(run.run_id, name, value)
        client.log_artifact(run.run_id, str(output / SCORES_FILE))
    return Evaluation(scores, features, run, output / SCORES_FILE)


def check_gpu(setting: str) -> None:
    """Makes sure that a node of Ray, which is connected, has a GPU for an evaluation.

    Raises:
        UserError: if there is none, for which its task would wait for ever.
    """
    if not any(node["Resources"].get("GPU", 0.0) >= 1 for node in ray.nodes() if node["Alive"]):
        raise UserError(f"{setting} (True) needs a GPU, but no node of Ray has one")


def _extract(checkpoint: Path, config: EvaluateConfig, on_progress: OnProgress) -> Features:
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
    """CPUs of the largest node: a task lies on one node."""
    return max(1, int(max(node["Resources"].get("CPU", 1) for node in ray.nodes())))


def score(features: Features, settings: EvaluateSettings) -> dict[str, Any]:
    """Scores of both modalities, trained and untrained, with the classes and the splits."""
    reason = _why_no_scores(features)
    result: dict[str, Any] = {
        "classes": list(features.classes),
        "num_train": int(features.is_train.sum()),
        "num_test": int(features.is_test.sum()),
        "reason": reason,
        "modalities": {},
    }
    if reason:
        return result
    for modality in MODALITIES:
        networks = {
            network: _score_network(features, matrix, settings)
            for network, matrix in features.of(modality).items()
        }
        if all(networks.values()):
            result["modalities"][modality] = networks
    return result


def _why_no_scores(features: Features) -> str:
    if not features.clip_ids:
        return "no clip lies in a split that is scored"
    if not features.classes:
        return "no clip has a label"
    if not (features.is_test & (features.labels >= 0)).any():
        return "no labelled clip is held out"
    num_classes = len(set(features.labels[features.is_train & (features.labels >= 0)].tolist()))
    if num_classes < 2:
        return f"the clips trained on have {num_classes} class, and a probe needs two"
    return ""


def knn_scores(features: Features, settings: EvaluateSettings) -> dict[str, float]:
    """Accuracy of the network `trained` by nearest neighbors, for modalities that can be scored."""
    sides = {
        modality: _labelled_sides(features, features.of(modality)["trained"])
        for modality in MODALITIES
    }
    return {
        modality: accuracy(_knn(found, len(features.classes), settings), found.y_test)
        for modality, found in sides.items()
        if found is not None
    }


@dataclass(frozen=True)
class _Sides:
    """Labelled features, of the clips that are learnt from and of those that are scored."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def _labelled_sides(features: Features, matrix: NDArray[np.float32]) -> _Sides | None:
    """One network's; None if the modality is missing on either side."""
    there = np.isfinite(matrix).all(axis=1) & (features.labels >= 0)
    train, test = there & features.is_train, there & features.is_test
    labels = torch.tensor(features.labels)
    if len(set(features.labels[train].tolist())) < 2 or not test.any():
        return None
    return _Sides(
        x_train=torch.from_numpy(matrix[train]),
        y_train=labels[torch.from_numpy(train)],
        x_test=torch.from_numpy(matrix[test]),
        y_test=labels[torch.from_numpy(test)],
    )


def _knn(sides: _Sides, num_classes: int, settings: EvaluateSettings) -> Tensor:
    return knn_predict(
        sides.x_train,
        sides.y_train,
        sides.x_test,
        num_classes=num_classes,
        neighbors=min(settings.neighbors, len(sides.x_train)),
        temperature=settings.knn_temperature,
    )


def _score_network(
    features: Features, matrix: NDArray[np.float32], settings: EvaluateSettings
) -> dict[str, Any]:
    """k-NN and linear probe of one network; empty if the modality is missing on either side."""
    sides = _labelled_sides(features, matrix)
    if sides is None:
        return {}
    num_classes, y_test = len(features.classes), sides.y_test
    knn = _knn(sides, num_classes, settings)
    probe = fit_linear_probe(
        sides.x_train,
        sides.y_train,
        num_classes=num_classes,
        l2=settings.linear_l2,
        seed=settings.seed,
    )
    linear = probe.predict(sides.x_test)
    counts = np.bincount(y_test.numpy(), minlength=num_classes)
    return {
        "knn": accuracy(knn, y_test),
        "linear": accuracy(linear, y_test),
        "knn_per_class": _without_nan(per_class_accuracy(knn, y_test, num_classes)),
        "linear_per_class": _without_nan(per_class_accuracy(linear, y_test, num_classes)),
        "linear_l2": probe.l2,
        "majority": float(counts.max() / counts.sum()),
        "num_train": len(sides.y_train),
        "num_test": len(y_test),
    }


def _without_nan(values: list[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def flat_scores(scores: dict[str, Any]) -> dict[str, float]:
    """`evaluation/video/trained/knn` and so on: accuracies from 0 to 1."""
    return {
        f"evaluation/{modality}/{network}/{measure}": values[measure]
        for modality, networks in scores["modalities"].items()
        for network, values in networks.items()
        for measure in ("knn", "linear")
    }
