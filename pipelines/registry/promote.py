"""The model registry: encoders become versions, and the alias goes to the one that is better.

A version says in its tags what it was scored on and with what result, so that two versions can be
compared without their runs. The alias moves only to a version that beats the present one on the
same dataset. Registering the same encoder again finds the version that is there.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.config.evaluate import EvaluateSettings
from pipelines.config.ingest import IngestSettings
from pipelines.config.promote import PromoteSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import JobFailed, UserError
from pipelines.evaluation.features import load_model
from pipelines.models.checkpoints import TrainingInfo, read_info
from pipelines.models.encoder_files import ClipSettings, EncoderInfo
from pipelines.redaction import one_line
from pipelines.registry.alias import alias_rule
from pipelines.registry.card import EncoderScores, encoder_scores, model_card
from pipelines.registry.versions import MAX_DESCRIPTION, find_or_make_version, registered_model
from pipelines.tracking.tracker import RunRef
from xkd_core.encoders import Encoder, Modality

MODALITIES: tuple[Modality, ...] = ("video", "audio")


@dataclass(frozen=True)
class Registered:
    """A version in the registry."""

    name: str
    version: str
    alias_moved: bool
    reason: str
    """Why the alias moved or not, in one line."""


def check_scores(scores: Mapping[str, Any], info: TrainingInfo, settings: PromoteSettings) -> None:
    """Makes sure that scores are those of a checkpoint.

    Raises:
        UserError: if they are of another one.
    """
    there = (scores.get("pretrain_run_id"), scores.get("step"), scores.get("role"))
    here = (info.run_id, info.next_step, settings.role)
    for name, old, new in zip(("run", "step", "role"), there, here, strict=True):
        if old != new:
            raise UserError(
                f"scores are of {name} {old}, but the checkpoint is of {name} {new}: "
                "evaluate this checkpoint first"
            )


def promote(
    checkpoint: Path, scores: Mapping[str, Any] | None, settings: PromoteSettings, run: RunRef
) -> list[Registered]:
    """Registers both encoders of a checkpoint and moves the alias to those that are better.

    Args:
        checkpoint: A complete checkpoint.
        scores: What an evaluation of it wrote; without it the alias goes only where there is none.
        settings: Names, the alias and the metric.
        run: The run that the models are logged to.

    Raises:
        UserError: if the scores are of another checkpoint.
        JobFailed: if MLflow refuses.
    """
    training = read_info(checkpoint)
    if scores is not None:
        check_scores(scores, training, settings)
    model, config = load_model(checkpoint)
    clips = _clip_settings(config.dataset, scores)
    try:
        return [
            _register(
                model.get_submodule(f"{modality}_{settings.role}"),
                EncoderInfo(
                    modality=modality,
                    model=config.model,
                    clips=clips,
                    provenance=_provenance(training, checkpoint, settings.role, scores),
                ),
                encoder_scores(scores, modality),
                settings,
                run,
            )
            for modality in MODALITIES
        ]
    except MlflowException as error:
        raise JobFailed(
            f"MLflow did not register the encoders of {checkpoint}: "
            f"{one_line(error)}. The same command tries again"
        ) from error


def _clip_settings(dataset: str, scores: Mapping[str, Any] | None) -> ClipSettings:
    """As the clips were made that the encoder was trained on, which must still be there."""
    ingest = IngestSettings.model_validate(ClipDataset.open(dataset).manifest["settings"])
    num_windows = (scores or {}).get("num_windows", EvaluateSettings().num_windows)
    return ClipSettings(
        segment_seconds=ingest.segment_seconds,
        min_segment_seconds=ingest.min_segment_seconds,
        short_side=ingest.short_side,
        num_windows=num_windows,
    )


def _provenance(
    training: TrainingInfo, checkpoint: Path, role: str, scores: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "role": role,
        "pretrain_run_id": training.run_id,
        "dataset_id": training.dataset_id,
        "step": training.next_step,
        "checkpoint": str(checkpoint),
        "code_version": training.code_version,
        "evaluate_run_id": scores["evaluate_run_id"] if scores else "",
    }


def _register(
    encoder: Any,
    info: EncoderInfo,
    scores: EncoderScores | None,
    settings: PromoteSettings,
    run: RunRef,
) -> Registered:
    """Finds or makes the version of an encoder, tags it with its scores, decides on the alias."""
    assert isinstance(encoder, Encoder)
    name = f"{settings.model_prefix}-{info.modality}"
    card = model_card(name, settings.alias, info, scores)
    client = run.client()
    registered = registered_model(client, name, info)
    version = find_or_make_version(encoder, info, name, card, run)
    _tag_scores(client, version, card, scores, run)
    return _decide(client, registered, version, scores, settings)


def register_unscored(
    encoder: Encoder, info: EncoderInfo, name: str, alias: str | None, run: RunRef
) -> Registered:
    """Finds or makes the version of an encoder that comes from elsewhere; an alias is just set.

    Raises:
        JobFailed: if MLflow refuses.
    """
    client = run.client()
    try:
        registered_model(client, name, info)
        card = model_card(name, alias, info, None)
        version = find_or_make_version(encoder, info, name, card, run)
        if alias is not None:
            client.set_registered_model_alias(name, alias, str(version.version))
    except MlflowException as error:
        raise JobFailed(
            f"MLflow did not register {name}: {one_line(error)}. The same command tries again"
        ) from error
    reason = "registered without an alias" if alias is None else f"gets the alias {alias}"
    return Registered(name, str(version.version), alias is not None, reason)


def _tag_scores(
    client: MlflowClient,
    version: ModelVersion,
    card: str,
    scores: EncoderScores | None,
    run: RunRef,
) -> None:
    """Records the scores with the version, and with the logged model that it was made from."""
    if scores is None or version.tags.get("xkd.evaluation.run_id") == scores.run_id:
        return
    client.update_model_version(version.name, version.version, card[:MAX_DESCRIPTION])
    tags = {"dataset_id": scores.dataset_id}
    tags |= {measure: repr(value) for measure, value in scores.trained.items()}
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, f"xkd.evaluation.{key}", value)
    now = int(time.time() * 1000)
    metrics = [
        Metric(
            f"evaluation/{version.tags['xkd.modality']}/{network}/{measure}",
            accuracy,
            now,
            0,
            model_id=version.tags["xkd.model_id"],
            dataset_name="clips",
            dataset_digest=scores.dataset_id[:36],
            run_id=run.run_id,
        )
        for network, values in (("trained", scores.trained), ("untrained", scores.untrained))
        for measure, accuracy in values.items()
    ]
    client.log_batch(run.run_id, metrics=metrics)
    # Last: with it the scores count as recorded, and are not recorded again.
    client.set_model_version_tag(
        version.name, version.version, "xkd.evaluation.run_id", scores.run_id
    )


def _decide(
    client: MlflowClient,
    registered: RegisteredModel,
    version: ModelVersion,
    scores: EncoderScores | None,
    settings: PromoteSettings,
) -> Registered:
    name, number, alias = version.name, str(version.version), settings.alias
    present_number = registered.aliases.get(alias)
    if present_number is not None and str(present_number) == number:
        return Registered(name, number, False, f"keeps the alias {alias}")
    present = None
    if present_number is not None:
        present = client.get_model_version(name, str(present_number))
    moves, reason = alias_rule(present, scores, settings)
    if moves:
        client.set_registered_model_alias(name, alias, number)
    verdict = f"gets the alias {alias}" if moves else f"registered without the alias {alias}"
    return Registered(name, number, moves, f"{verdict}: {reason}")
