"""Resolves the URI of a registered encoder to a version."""

import json
import re
from dataclasses import dataclass

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.config.base import TrackingSettings
from pipelines.errors import UserError
from pipelines.models.encoder_files import ClipSettings
from pipelines.redaction import redacted
from pipelines.registry.manifest import MANIFEST_TAG
from pipelines.registry.versions import CODE_TAG
from pipelines.tracking.server import check_tracking, tracking_uri
from pipelines.tracking.sqlite import sqlite_file
from xkd_core.encoders import Modality

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class EncoderVersion:
    """A version of a registered encoder, and the clips that it takes."""

    name: str
    version: int
    modality: Modality
    frame_rate: float
    sample_rate: int
    clips: ClipSettings
    manifest: str | None = None
    """Hash of the manifest of its files; None for versions of older releases."""

    @property
    def uri(self) -> str:
        """The URI of this version, which does not change when aliases move."""
        return f"models:/{self.name}/{self.version}"


def resolve_model(uri: str, tracking: TrackingSettings) -> EncoderVersion:
    """Finds the version that a `models:/...` URI refers to now.

    Raises:
        UserError: If the URI is malformed, MLflow does not answer, or the model, alias, or version
            does not exist or is not an encoder of this project.
    """
    match = _MODEL_URI.fullmatch(uri)
    if match is None:
        raise UserError(f"model ({uri}) must be models:/NAME@ALIAS or models:/NAME/VERSION")
    check_tracking(tracking)
    address = tracking_uri(tracking)
    server = redacted(address)
    database = sqlite_file(address)
    if database is not None and not database.exists():  # MLflow would make one
        raise UserError(f"model ({uri}): no model is registered at {server}: no such file exists")
    client = MlflowClient(address)
    try:
        registered = client.get_registered_model(match["name"])
    except MlflowException as error:
        names = ", ".join(sorted(one.name for one in client.search_registered_models())) or "none"
        raise UserError(
            f"model ({uri}): no model {match['name']} is registered at {server}, which has {names}"
        ) from error
    number = match["version"]
    if number is None:
        number = registered.aliases.get(match["alias"])
        if number is None:
            aliases = ", ".join(sorted(registered.aliases)) or "none"
            raise UserError(
                f"model ({uri}): {match['name']} has no alias {match['alias']}, its aliases are: "
                f"{aliases}"
            )
    return _encoder_version(client, uri, match["name"], str(number))


def _encoder_version(client: MlflowClient, uri: str, name: str, number: str) -> EncoderVersion:
    try:
        version = client.get_model_version(name, number)
    except MlflowException as error:
        raise UserError(f"model ({uri}): {name} has no version {number}") from error
    tags = version.tags
    if "xkd.clips" not in tags:
        raise UserError(f"model ({uri}) is not an encoder that `promote` registered")
    if CODE_TAG not in tags:
        raise UserError(
            f"model ({uri}): version {number} was registered by an older release, whose code would "
            "not run beside this one: promote its checkpoint again"
        )
    files = client.list_logged_model_artifacts(tags["xkd.model_id"])
    if "MLmodel" not in {file.path for file in files}:
        raise UserError(f"model ({uri}): the files of version {number} are gone: {version.source}")
    return EncoderVersion(
        name=name,
        version=int(number),
        modality="video" if tags["xkd.modality"] == "video" else "audio",
        frame_rate=float(tags["xkd.frame_rate"]),
        sample_rate=int(tags["xkd.sample_rate"]),
        clips=ClipSettings(**json.loads(tags["xkd.clips"])),
        manifest=tags.get(MANIFEST_TAG),
    )
