"""Says what `promote` would do, without registering anything: the lines of its dry run."""

from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.config.promote import PromoteConfig
from pipelines.models.checkpoints import find_checkpoint
from pipelines.registry.alias import Candidate, verdict
from pipelines.registry.encoder_scores import encoder_scores
from pipelines.registry.promote import (
    checkpoint_encoders,
    checkpoint_outcomes,
    checkpoint_scores,
)
from pipelines.registry.versions import find_version
from pipelines.tracking.server import tracking_uri
from pipelines.tracking.sqlite import sqlite_file


def preview(config: PromoteConfig) -> list[str]:
    """Returns a line for each encoder: its version, and whether that would get the alias.

    Raises:
        UserError: If the scores are of another checkpoint, or the clip dataset of the training is
            gone.
    """
    scores, outcomes = checkpoint_scores(config), checkpoint_outcomes(config)
    client = _client(config)
    lines = []
    for encoder, info in checkpoint_encoders(find_checkpoint(config.checkpoint), scores, config):
        name = f"{config.model_prefix}-{info.modality}"
        registered = _registered(client, name) if client else None
        candidate = Candidate(encoder_scores(scores, info.modality), outcomes, config)
        if client is None or registered is None:
            lines.append(
                f"would register {name} version 1: gets the alias {config.alias}: no version had it"
            )
            continue
        version = find_version(client, encoder, info, name)
        number = str(version.version) if version else None
        _, reason = verdict(client, name, registered.aliases, number, candidate)
        what = f"find {name} version {number}" if number else f"register {name} as a new version"
        lines.append(f"would {what}: {reason}")
    return lines


def _client(config: PromoteConfig) -> MlflowClient | None:
    """A client of the registry; None for a file that is not there, which a client would make."""
    uri = tracking_uri(config.tracking)
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        return None
    return MlflowClient(uri)


def _registered(client: MlflowClient, name: str) -> RegisteredModel | None:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
