"""The encoders that an evaluation names, each modality in one of them (`named_weights`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.config.base import TrackingSettings
from pipelines.config.published import PublishedSettings
from pipelines.errors import UserError
from pipelines.evaluation.networks import EncoderSource, Role, checkpoint_source
from pipelines.files import put
from pipelines.models.encoder_files import read_encoder_info
from pipelines.registry.download import RegisteredEncoder
from pipelines.registry.named_weights import RegisteredWeights, named_weights, reading
from pipelines.storage import AnyPath, RemotePath
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
    with reading(given):
        found = named_weights(given, tracking)
        if isinstance(found, RegisteredWeights):
            return _registered(found.encoder, role, copies)
        if found.kind == "exported":
            return _exported(given, found.path)
        if found.kind == "published":
            return _published(given, found.path, role, published)
        return checkpoint_source(found.path, given, role)


def _registered(found: RegisteredEncoder, role: Role, copies: AnyPath | None) -> EncoderSource:
    version = found.version
    where: AnyPath = found.folder(copies if isinstance(copies, Path) else None)
    if isinstance(copies, RemotePath):
        assert isinstance(where, Path)
        here, where = where, copies / f"{version.name}-{version.version}"
        put(here, where)
    known = {name.removeprefix("xkd."): value for name, value in found.tags.items()}
    return _of_version(version.uri, where, version.modality, {"role": role, **known})


def _exported(given: str, folder: AnyPath) -> EncoderSource:
    with on_disk(folder) as copy:
        info = read_encoder_info(copy)
    return _of_version(given, folder, info.modality, info.provenance)


def _of_version(
    given: str, folder: AnyPath, modality: Modality, known: Mapping[str, Any]
) -> EncoderSource:
    step = str(known.get("step", "0"))
    return EncoderSource(
        given=given,
        kind="exported",
        path=str(folder),
        modalities=(modality,),
        role="student" if known.get("role") == "student" else "teacher",
        step=int(step) if step.isdigit() else 0,
        run_id=str(known.get("pretrain_run_id", "")),
    )


def _published(given: str, path: AnyPath, role: Role, settings: PublishedSettings) -> EncoderSource:
    with on_disk(path) as file:
        every = read_published_encoders(file)
    found = [one for one in every if one.role in (None, role)] or every
    modalities = tuple(dict.fromkeys(one.modality for one in found))
    source = EncoderSource(given, "published", given, modalities, role, settings)
    source.load()
    return source
