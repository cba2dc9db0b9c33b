"""Finds the encoders that a user names: checkpoints, registered versions, published files."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.artifacts
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.config.base import TrackingSettings
from pipelines.config.evaluate import REGISTERED
from pipelines.config.published import PublishedSettings
from pipelines.errors import UserError
from pipelines.evaluation.networks import EncoderSource, Role, checkpoint_source
from pipelines.files import put
from pipelines.models.checkpoints import find_checkpoint
from pipelines.models.encoder_files import (
    OLDER_FOLDER,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    weights_file,
)
from pipelines.redaction import one_line
from pipelines.registry.manifest import check_files
from pipelines.registry.pull import fetch
from pipelines.registry.signing import wants_signature
from pipelines.registry.uri import EncoderVersion, resolve_model
from pipelines.storage import AnyPath, RemotePath, path_of
from pipelines.tracking.server import tracking_uri
from pipelines.transfers import on_disk
from xkd_core.encoders import Modality
from xkd_core.published.encoders import read_published_encoders


def encoder_sources(
    locations: Sequence[str],
    *,
    setting: str,
    role: Role,
    published: PublishedSettings,
    tracking: TrackingSettings,
    copies: AnyPath | None = None,
) -> tuple[EncoderSource, ...]:
    """Finds the encoders of a list, each modality in one of them.

    Args:
        locations: Checkpoints, `models:/...` URIs and files.
        setting: Name of the setting, for messages.
        role: Which network of a checkpoint or of a whole published file.
        published: What published files do not record.
        tracking: Where MLflow is.
        copies: Folder that every worker sees, for models of a store that is not on local disks.
            Default: TMPDIR.

    Raises:
        UserError: If one is missing or is no encoder, or two are of the same modality.
    """
    found = tuple(_source(one, role, published, tracking, copies) for one in locations)
    given: dict[Modality, str] = {}
    for source in found:
        for modality in source.modalities:
            if modality in given:
                raise UserError(
                    f"{setting} ({given[modality]}, {source.given}) must name one {modality} "
                    "encoder, but both have one"
                )
            given[modality] = source.given
    return found


def _source(
    given: str,
    role: Role,
    published: PublishedSettings,
    tracking: TrackingSettings,
    copies: AnyPath | None,
) -> EncoderSource:
    if given.startswith(REGISTERED):
        return _registered(given, role, tracking, copies)
    if path_of(given).is_file():
        return _published(given, role, published)
    return checkpoint_source(find_checkpoint(given), given, role)


def _registered(
    given: str, role: Role, tracking: TrackingSettings, copies: AnyPath | None
) -> EncoderSource:
    version = resolve_model(given, tracking)
    client = MlflowClient(tracking_uri(tracking))
    name, number = version.name, str(version.version)
    stored = client.get_model_version(name, number)
    try:
        root_uri = client.get_model_version_download_uri(name, number)
        is_local = root_uri.startswith(("/", "file:"))  # read where it lies
        target = None
        if not is_local and isinstance(copies, Path):
            target = copies / f"{name}-{number}"
            target.mkdir(parents=True, exist_ok=True)
        folder = mlflow.artifacts.download_artifacts(
            artifact_uri=root_uri,
            dst_path=str(target) if target else None,
            tracking_uri=tracking_uri(tracking),
        )
    except (MlflowException, OSError) as error:
        raise UserError(f"model ({given}) cannot be fetched: {one_line(error)}") from error
    root = Path(folder)
    check_files(root, version.manifest, version.uri, in_use=True)
    _check_signed(version, tracking_uri(tracking))
    root = root if (root / SETTINGS_FILE).exists() else root / OLDER_FOLDER
    if not weights_file(root).exists():
        raise UserError(f"model ({given}): its files hold no {WEIGHTS_FILE}")
    where: AnyPath = root
    if isinstance(copies, RemotePath):
        where = copies / f"{name}-{number}"
        put(root, where)
    tags = stored.tags
    recorded: Role = "student" if tags.get("xkd.role", role) == "student" else "teacher"
    step = tags.get("xkd.step", "0")
    return EncoderSource(
        given=version.uri,
        kind="registered",
        path=str(where),
        modalities=(version.modality,),
        role=recorded,
        step=int(step) if step.isdigit() else 0,
        run_id=tags.get("xkd.pretrain_run_id", ""),
    )


def _check_signed(version: EncoderVersion, server: str) -> None:
    """Verifies the signature on a clean copy, because bytecode beside the code would be refused.

    The signature covers the manifest, whose hash is that of the version, as for the files in use.
    """
    if wants_signature():
        with TemporaryDirectory(prefix="xkd-model-") as folder:
            fetch(version, server, Path(folder))


def _published(given: str, role: Role, settings: PublishedSettings) -> EncoderSource:
    try:
        with on_disk(path_of(given)) as file:
            every = read_published_encoders(file)
        found = [one for one in every if one.role in (None, role)] or every
        modalities = tuple(dict.fromkeys(one.modality for one in found))
        source = EncoderSource(given, "published", given, modalities, role, settings)
        source.load()
    except ValueError as error:
        message = str(error)
        raise UserError(message if given in message else f"file ({given}): {message}") from error
    return source
