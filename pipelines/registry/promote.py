"""Registers the encoders of a checkpoint, and moves the alias to a version that is better.

A version's tags hold its scores and the dataset they were measured on, so that two versions can be
compared without their runs. The alias moves only to a version that beats the present one on the
same dataset. Registering the same encoder again finds the version that is there.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from pipelines.config.base import Datasets
from pipelines.config.evaluate import EvaluateSettings
from pipelines.config.ingest import IngestSettings
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.promote import PromoteConfig, PromoteSettings
from pipelines.dataset.joined import JoinedDataset, open_datasets
from pipelines.errors import JobFailed, UserError
from pipelines.evaluation.outcomes import OUTCOMES_FILE, Outcomes
from pipelines.evaluation.scores import Scores
from pipelines.evaluation.scores_file import OlderScoresError, read_scores
from pipelines.filesystems import store_failure
from pipelines.models.checkpoints import TrainingInfo, find_checkpoint, load_model, read_info
from pipelines.models.encoder_files import ClipSettings, EncoderInfo
from pipelines.paths import moved_paths
from pipelines.redaction import one_line
from pipelines.registry.alias import Candidate, move_alias, verdict
from pipelines.registry.card import BEGAN_FROM, model_card
from pipelines.registry.encoder_scores import EncoderScores, encoder_scores
from pipelines.registry.versions import (
    find_or_make_version,
    record_scores,
    registered_model,
)
from pipelines.storage import AnyPath, path_of
from pipelines.tracking.runs import RunRef
from xkd_core.encoders import Encoder

logger = logging.getLogger(__name__)

_MAX_TAG = 1000
"""Characters of a reason on a version's tags."""


@dataclass(frozen=True)
class Registered:
    """A registered version, and what happened to the alias."""

    name: str
    version: str
    alias_moved: bool
    reason: str
    """Why the alias moved or stayed, in one line."""


def checkpoint_scores(config: PromoteConfig) -> Scores | None:
    """Reads the scores that the settings name, which must be the checkpoint's; None without.

    Raises:
        UserError: If the file is not a `scores.json`, or its scores are of another checkpoint.
    """
    if config.scores is None:
        return None
    try:
        scores = read_scores(path_of(config.scores))
    except FileNotFoundError:
        raise UserError(f"scores ({config.scores}) does not exist; evaluate writes it") from None
    except OlderScoresError:
        raise UserError(
            f"scores ({config.scores}) was written by an older release, without intervals: "
            "evaluate the checkpoint again"
        ) from None
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"scores ({config.scores}) cannot be read: {store_failure(error)}"
        ) from error
    except ValueError:
        raise UserError(f"scores ({config.scores}) must be a scores.json of evaluate") from None
    _check_scores(scores, read_info(find_checkpoint(config.checkpoint)), config)
    return scores


def checkpoint_outcomes(config: PromoteConfig) -> Outcomes | None:
    """Reads the results of each clip, which an evaluation writes beside its scores; None without.

    Raises:
        UserError: If the file is damaged.
    """
    if config.scores is None:
        return None
    file = path_of(config.scores).with_name(OUTCOMES_FILE)
    try:
        return Outcomes.read(file) if file.exists() else None
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"scores ({config.scores}): {file}: {store_failure(error)}") from error
    except ValueError:
        raise UserError(
            f"scores ({config.scores}): {file} is damaged; evaluate the checkpoint again"
        ) from None


def check_metric(config: PromoteConfig) -> None:
    """Makes sure that an evaluation of labels measured what versions are compared by.

    Without labels nothing can be compared, and the alias stays.

    Raises:
        UserError: If it measured others.
    """
    scores = checkpoint_scores(config)
    if scores is None:
        return
    found = [encoder_scores(scores, modality) for modality in config.modalities]
    measured = {name for one in found if one is not None for name in one.trained}
    if measured - {"retrieval"} and config.metric not in measured:
        raise UserError(
            f"metric ({config.metric}) must be one that scores ({config.scores}) have: "
            f"{', '.join(sorted(measured))}; or evaluate with it among measures"
        )


def _check_scores(scores: Scores, info: TrainingInfo, settings: PromoteSettings) -> None:
    """Makes sure that scores are those of a checkpoint, wherever both are now.

    Raises:
        UserError: If they are of another one.
    """
    there = (scores.pretrain_run_id, scores.step, scores.role)
    here = (info.run_id, info.next_step, settings.role)
    for name, old, new in zip(("run", "step", "role"), there, here, strict=True):
        if old != new:
            raise UserError(
                f"scores are of {name} {old}, but the checkpoint is of {name} {new}: "
                "evaluate this checkpoint first"
            )


def promote(
    checkpoint: AnyPath,
    scores: Scores | None,
    settings: PromoteSettings,
    run: RunRef,
    outcomes: Outcomes | None = None,
) -> list[Registered]:
    """Registers the encoders of a checkpoint and moves the alias to those that are better.

    Args:
        checkpoint: A complete checkpoint.
        scores: The scores of an evaluation of it. Without them the alias goes only to a model that
            has none yet.
        settings: Names, the alias, and the metric.
        run: The run that the models are logged to.
        outcomes: The results of each clip of that evaluation, which pair it with the present
            version's.

    Raises:
        UserError: If the scores are of another checkpoint, or the clip dataset of the training is
            gone.
        JobFailed: If MLflow refuses.
    """
    encoders = checkpoint_encoders(checkpoint, scores, settings)
    try:
        return [
            _register(encoder, info, encoder_scores(scores, info.modality), settings, run, outcomes)
            for encoder, info in encoders
        ]
    except MlflowException as error:
        raise JobFailed(
            f"MLflow did not register the encoders of {checkpoint}: "
            f"{one_line(error)}. The same command tries again"
        ) from error


def checkpoint_encoders(
    checkpoint: AnyPath, scores: Scores | None, settings: PromoteSettings
) -> list[tuple[Encoder, EncoderInfo]]:
    """Loads both encoders of a checkpoint, and what a version says of them.

    Raises:
        UserError: If the scores are of another checkpoint, or the clip dataset of the training is
            gone.
    """
    training = read_info(checkpoint)
    if scores is not None:
        _check_scores(scores, training, settings)
    model, config = load_model(checkpoint)
    clips = _clip_settings(_training_dataset(checkpoint, config), scores)
    known = _provenance(training, checkpoint, settings.role, scores)
    encoders = []
    for modality in settings.modalities:
        encoder = model.get_submodule(f"{modality}_{settings.role}")
        assert isinstance(encoder, Encoder)
        provenance = {**known, **_origin(training, modality)}
        encoders.append((encoder, EncoderInfo(modality, config.model, clips, provenance)))
    return encoders


def _training_dataset(checkpoint: AnyPath, config: PretrainConfig) -> Datasets:
    """Where the clip dataset of a training is now.

    A checkpoint names it by an absolute path. If the folder that holds both was moved or is mounted
    elsewhere, the path is gone, and the dataset lies where it lay relative to the run:

        recorded   /home/me/a/runs/smoke/pretrain         /home/me/a/runs/smoke/ingest
        now        /mnt/b/runs/smoke/pretrain/smoke/...   /mnt/b/runs/smoke/ingest
    """
    if not isinstance(checkpoint, Path):
        return config.dataset
    old_run = Path(config.output, config.name)
    for run in checkpoint.absolute().parents:
        if run.name == config.name:
            found = moved_paths({"dataset": config.dataset}, old_run, run)["dataset"]
            if found not in (config.dataset, list(config.dataset)):
                return found if isinstance(found, str) else tuple(found)
    return config.dataset


def _clip_settings(dataset: Datasets, scores: Scores | None) -> ClipSettings:
    """How media are cut for the encoder: as the clips were that it was trained on."""
    opened = open_datasets(dataset)
    parts = opened.parts if isinstance(opened, JoinedDataset) else (opened,)
    most = sorted(parts, key=lambda part: -part.num_clips)
    cut = [IngestSettings.model_validate(part.manifest["settings"]) for part in most]
    for name in ("segment_seconds", "min_segment_seconds", "short_side"):
        values = list(dict.fromkeys(getattr(one, name) for one in cut))
        if len(values) > 1:
            logger.warning(
                "the datasets differ in %s (%s): the encoder takes %s, as the largest of them",
                *(name, ", ".join(map(str, values)), values[0]),
            )
    return ClipSettings(
        segment_seconds=cut[0].segment_seconds,
        min_segment_seconds=cut[0].min_segment_seconds,
        short_side=cut[0].short_side,
        num_windows=scores.num_windows if scores else EvaluateSettings().num_windows,
    )


def _provenance(
    training: TrainingInfo, checkpoint: AnyPath, role: str, scores: Scores | None
) -> dict[str, Any]:
    return {
        "role": role,
        "pretrain_run_id": training.run_id,
        "dataset_id": training.dataset_id,
        "step": training.next_step,
        "checkpoint": str(checkpoint),
        "code_version": training.code_version,
        "evaluate_run_id": scores.evaluate_run_id if scores else "",
    }


def _origin(training: TrainingInfo, modality: str) -> dict[str, str]:
    """The weights that the training of an encoder began from; empty for new ones."""
    found = (training.began_from or {}).get(modality, {})
    names = {"source": BEGAN_FROM} | {
        name: f"{BEGAN_FROM}_{name}"
        for name in ("networks", "content", "name", "version", "model_id", "role", "step", "run_id")
    }
    return {names[name]: str(value) for name, value in found.items() if name in names}


def _register(
    encoder: Encoder,
    info: EncoderInfo,
    scores: EncoderScores | None,
    settings: PromoteSettings,
    run: RunRef,
    outcomes: Outcomes | None,
) -> Registered:
    """Finds or makes the version of an encoder, records its scores, and decides on the alias."""
    name = f"{settings.model_prefix}-{info.modality}"
    card = model_card(name, settings.alias, info, scores)
    client = run.client()
    registered = registered_model(client, name, info)
    version = find_or_make_version(encoder, info, name, card, run)
    if scores is not None:
        record_scores(client, version, card, scores, run)
    number, alias = str(version.version), settings.alias
    candidate = Candidate(scores, outcomes, settings)
    moves, reason = verdict(client, name, registered.aliases, number, candidate)
    if moves:
        move_alias(client, name, alias, number, f"promoted: {reason}"[:_MAX_TAG])
    return Registered(name, number, moves, reason)
