"""Versions of registered models, identified by a hash of settings, weights, and code.

Registering the same encoder again therefore finds the version that exists.
"""

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from pipelines.models.encoder_files import EncoderInfo
from pipelines.registry.card import CODE_NAME, without_front_matter
from pipelines.registry.encoder_scores import EncoderScores
from pipelines.registry.manifest import MANIFEST_TAG, write_manifest
from pipelines.registry.package import package_name, save_package, stage
from pipelines.registry.signing import sign
from pipelines.tracking.code_version import code_version
from pipelines.tracking.runs import RunRef
from xkd_core.encoders import Encoder

CODE_TAG = "xkd.code"
"""Name of the package that holds a version's code; older versions had no package of their own."""
_MAX_DESCRIPTION = 5000
"""Characters that fit the registry's database."""


def registered_model(client: MlflowClient, name: str, info: EncoderInfo) -> RegisteredModel:
    """The registered model, created if necessary, as it is before a version is added."""
    try:
        client.create_registered_model(
            name, description=f"Embeds {info.modality}; pretrained with XKD, arXiv:2211.13929."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.get_registered_model(name)


def find_or_make_version(
    encoder: Encoder, info: EncoderInfo, name: str, card: str, run: RunRef
) -> ModelVersion:
    """The version of an encoder; if there is none, it is logged with the run and created."""
    client = run.client()
    with tempfile.TemporaryDirectory(prefix="xkd-model-") as folder:
        content = stage(encoder, info, Path(folder))
        card = card.replace(CODE_NAME, package_name(content))
        version = _version_with(client, name, content)
        if version is None:
            version = _make_version(client, name, content, info, card, Path(folder), run)
    return version


def find_version(
    client: MlflowClient, encoder: Encoder, info: EncoderInfo, name: str
) -> ModelVersion | None:
    """The version of an encoder, if it is registered; registers nothing."""
    with tempfile.TemporaryDirectory(prefix="xkd-model-") as folder:
        return _version_with(client, name, stage(encoder, info, Path(folder)))


def _version_with(client: MlflowClient, name: str, content: str) -> ModelVersion | None:
    found = client.search_model_versions(f"name = '{name}' AND tags.`xkd.content` = '{content}'")
    return max(found, key=lambda version: int(version.version), default=None)


def _make_version(
    client: MlflowClient,
    name: str,
    content: str,
    info: EncoderInfo,
    card: str,
    staged: Path,
    run: RunRef,
) -> ModelVersion:
    """Logs the model with the run, then creates a version of it."""
    step = int(info.provenance.get("step", 0))
    logged = client.create_logged_model(
        run.experiment_id,
        name=name.replace(".", "-"),  # names of logged models may not have dots
        source_run_id=run.run_id,
        params={key: str(value) for key, value in info.provenance.items()},
        model_type="encoder",
    )
    try:
        model = Model(
            artifact_path=logged.artifact_location,
            run_id=run.run_id,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
        )
        save_package(staged, info, card, staged / "model", model)
        manifest = write_manifest(staged / "model")
        is_signed = sign(staged / "model")
        client.log_model_artifacts(logged.model_id, str(staged / "model"))
    except BaseException:
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
        raise
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, step)])
    tags = {
        CODE_TAG.removeprefix("xkd."): package_name(content),
        "content": content,
        "modality": info.modality,
        "clips": json.dumps(asdict(info.clips)),
        "frame_rate": info.model.video.frame_rate,
        "sample_rate": info.model.audio.sample_rate,
        "registered_with": code_version(),
        "model_id": logged.model_id,
        MANIFEST_TAG.removeprefix("xkd."): manifest,
        "signed": str(is_signed).lower(),
        **info.provenance,
    }
    version = client.create_model_version(
        name,
        # Not models:/ID, which MLflow would look up at the global tracking URI.
        logged.artifact_location,
        run_id=run.run_id,
        tags={f"xkd.{key}": value for key, value in tags.items()},
        description=without_front_matter(card)[:_MAX_DESCRIPTION],
        model_id=logged.model_id,
    )
    versions = json.dumps([{"name": name, "version": version.version}])
    client.set_logged_model_tags(logged.model_id, {MLFLOW_MODEL_VERSIONS: versions})
    return version


def record_scores(
    client: MlflowClient, version: ModelVersion, card: str, scores: EncoderScores, run: RunRef
) -> None:
    """Records scores with a version and with the logged model that it was made from, once."""
    if version.tags.get("xkd.evaluation.run_id") == scores.run_id:
        return
    card = card.replace(CODE_NAME, version.tags.get(CODE_TAG, CODE_NAME))
    client.update_model_version(
        version.name, version.version, without_front_matter(card)[:_MAX_DESCRIPTION]
    )
    tags = {"dataset_id": scores.dataset_id}
    if scores.marks:
        tags["marks"] = "; ".join(scores.marks)
    tags |= {measure: repr(figure.value) for measure, figure in scores.trained.items()}
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, f"xkd.evaluation.{key}", value)
    now = int(time.time() * 1000)
    metrics = [
        Metric(
            f"evaluation/{version.tags['xkd.modality']}/{network}/{measure}",
            figure.value,
            now,
            0,
            model_id=version.tags["xkd.model_id"],
            dataset_name="clips",
            dataset_digest=scores.dataset_id[:36],
            run_id=run.run_id,
        )
        for network, values in (("trained", scores.trained), ("untrained", scores.untrained))
        for measure, figure in values.items()
    ]
    client.log_batch(run.run_id, metrics=metrics)
    # Last: this tag marks the scores as recorded, so what was cut off before is done again.
    client.set_model_version_tag(
        version.name, version.version, "xkd.evaluation.run_id", scores.run_id
    )
