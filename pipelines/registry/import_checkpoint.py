"""Registers encoders from files of the published method, with the paper's preprocessing.

They have no scores, so they are not compared with other versions: they get an alias only if the
settings name one. Importing the same file again finds the versions that exist.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from mlflow.exceptions import MlflowException

from pipelines.config.import_checkpoint import ImportConfig
from pipelines.errors import JobFailed, UserError
from pipelines.filesystems import store_failure
from pipelines.models.encoder_files import ClipSettings, EncoderInfo
from pipelines.redaction import one_line
from pipelines.registry.card import IMPORTED, model_card
from pipelines.registry.promote import Registered
from pipelines.registry.versions import find_or_make_version, registered_model
from pipelines.storage import path_of
from pipelines.tracking.runs import RunRef
from pipelines.transfers import on_disk
from xkd_core.encoders import Encoder
from xkd_core.published.encoders import (
    PublishedEncoder,
    build_published_encoder,
    infer_model,
    read_published_encoders,
)


class Imported(NamedTuple):
    """An encoder from a file, and what is known about it."""

    encoder: Encoder
    info: EncoderInfo


def read_encoders(config: ImportConfig) -> list[Imported]:
    """Reads the encoders that the settings select.

    Raises:
        UserError: If the file is not a published checkpoint, is damaged, or does not fit the
            settings.
    """
    try:
        with on_disk(path_of(config.file)) as file:
            found = read_published_encoders(file, modality=config.modality, role=config.role)
            if config.role is None and len(found) > 1:  # a whole checkpoint; teachers score higher
                found = [one for one in found if one.role == "teacher"] or found
            digest = _digest(file)
            return [_imported(published, config, digest) for published in found]
    except OSError as error:
        raise UserError(f"file ({config.file}) cannot be read: {store_failure(error)}") from error
    except ValueError as error:
        message = str(error)
        raise UserError(
            message if config.file in message else f"file ({config.file}): {message}"
        ) from error


def import_encoders(config: ImportConfig, run: RunRef) -> list[Registered]:
    """Registers the encoders of a file.

    Raises:
        UserError: As `read_encoders`.
        JobFailed: If MLflow refuses.
    """
    return [_register(one, config, run) for one in read_encoders(config)]


def _register(imported: Imported, config: ImportConfig, run: RunRef) -> Registered:
    """Finds or makes the version of an encoder, and sets the alias without a comparison."""
    client, alias, info = run.client(), config.alias, imported.info
    name = f"{config.model_prefix}-{info.modality}"
    try:
        registered_model(client, name, info)
        card = model_card(name, alias, info, None)
        version = find_or_make_version(imported.encoder, info, name, card, run)
        if alias is not None:
            client.set_registered_model_alias(name, alias, str(version.version))
    except MlflowException as error:
        raise JobFailed(
            f"MLflow did not register {name}: {one_line(error)}. The same command tries again"
        ) from error
    reason = "registered without an alias" if alias is None else f"gets the alias {alias}"
    return Registered(name, str(version.version), alias is not None, reason)


def _imported(published: PublishedEncoder, config: ImportConfig, digest: str) -> Imported:
    model = infer_model(
        published, video=config.video, audio=config.audio, num_heads=config.num_heads
    )
    info = EncoderInfo(
        modality=published.modality,
        model=model,
        clips=ClipSettings(
            segment_seconds=config.segment_seconds,
            min_segment_seconds=config.min_segment_seconds,
            short_side=config.short_side,
            num_windows=config.num_windows,
        ),
        provenance={
            IMPORTED: Path(config.file).name,
            "sha256": digest,
            "role": published.role or "unknown",
        },
    )
    return Imported(build_published_encoder(published, model).eval(), info)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
