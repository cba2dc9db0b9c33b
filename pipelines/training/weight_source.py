"""Where weights to begin from come from: registered versions, checkpoints, published files.

A source is opened cheaply, for its settings alone; `load` reads its weights. Nothing of a source is
run or unpickled: versions and checkpoints hold safetensors and JSON, and published files are read
by `xkd_core.published`. The code that travels in a registered version is not loaded.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors import SafetensorError

from pipelines.config.base import TrackingSettings
from pipelines.config.pretrain import PretrainConfig
from pipelines.errors import UserError
from pipelines.models.checkpoints import (
    AUDIO_CENTER,
    MODEL_FILE,
    VIDEO_CENTER,
    load_model,
    load_tensors,
    read_info,
)
from pipelines.models.encoder_files import (
    WEIGHTS_FILE,
    load_encoder,
    read_encoder_info,
)
from pipelines.redaction import one_line
from pipelines.registry.download import RegisteredEncoder
from pipelines.registry.named_weights import RegisteredWeights, named_weights, reading
from pipelines.storage import AnyPath
from pipelines.transfers import on_disk
from xkd_core.config import ModelConfig
from xkd_core.encoders import MODALITIES, Encoder, Modality
from xkd_core.published.encoders import (
    PublishedEncoder,
    build_published_encoder,
    read_published_encoders,
)
from xkd_core.published.initial import published_model, published_parts
from xkd_core.shapes import Tensor
from xkd_core.weights.initial import CENTER

Networks = Mapping[str, Tensor]
_ROLES = ("student", "teacher")


@dataclass(frozen=True)
class WeightSource:
    """Networks of one modality, whose names are those of `xkd_core.weights.initial`."""

    modality: Modality
    model: ModelConfig
    """The settings that they were built with."""
    location: str
    """Where they are, which no alias moves."""
    load: Callable[[], Networks]
    content: Callable[[], str]
    """Returns a hash of what they came from."""
    details: Mapping[str, str]
    """What else is known of their origin."""


def open_weights(
    location: str, model: ModelConfig, tracking: TrackingSettings, modality: Modality | None = None
) -> list[WeightSource]:
    """Opens what a setting of `init` names.

    Args:
        location: A registered version, a checkpoint, the folder of a run, or a published file.
        model: Settings of the model that begins from it, for what a published file does not say.
        tracking: Where MLflow is.
        modality: The encoder that is wanted, if one is.

    Raises:
        UserError: If it does not exist or holds no networks of this project; in one line.
    """
    with reading(location):
        found = named_weights(location, tracking)
        if isinstance(found, RegisteredWeights):
            return [_registered(found.encoder)]
        if found.kind == "published":
            return _published(found.path, model, modality)
        if found.kind == "exported":
            return [_exported(found.path)]
        return _checkpoint(found.path)


def _registered(found: RegisteredEncoder) -> WeightSource:
    version = found.version
    with tempfile.TemporaryDirectory(prefix="xkd-init-") as folder:
        info = read_encoder_info(found.fetch(Path(folder), weights=False))

    def load() -> Networks:
        with tempfile.TemporaryDirectory(prefix="xkd-init-") as folder:
            return _both_roles(load_encoder(found.fetch(Path(folder), weights=True))[0])

    return WeightSource(
        modality=info.modality,
        model=info.model,
        location=version.uri,
        load=load,
        content=lambda: found.content,
        details={
            "name": version.name,
            "version": str(version.version),
            "model_id": found.model_id,
            "role": str(info.provenance.get("role", "")),
        },
    )


def _exported(folder: AnyPath) -> WeightSource:
    with on_disk(folder) as copy:
        info = read_encoder_info(copy)

    def load() -> Networks:
        with on_disk(folder) as copy:
            return _both_roles(load_encoder(copy)[0])

    return WeightSource(
        modality=info.modality,
        model=info.model,
        location=str(folder),
        load=load,
        content=partial(_digest, folder / WEIGHTS_FILE),
        details={"role": str(info.provenance.get("role", ""))},
    )


def _checkpoint(folder: AnyPath) -> list[WeightSource]:
    info = read_info(folder)
    model = PretrainConfig.model_validate(info.config).model
    details = {"step": str(info.next_step), "run_id": info.run_id}
    return [
        WeightSource(
            modality=modality,
            model=model,
            location=str(folder),
            load=partial(_networks_of, folder, modality),
            content=partial(_digest, folder / MODEL_FILE),
            details=details,
        )
        for modality in MODALITIES
    ]


def _networks_of(folder: AnyPath, modality: Modality) -> Networks:
    """Reads the networks of one modality of a checkpoint, which lists shared tensors once."""
    model, _ = load_model(folder)
    prefix = f"{modality}_"
    networks = {
        name.removeprefix(prefix): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(prefix)
    }
    center = VIDEO_CENTER if modality == "video" else AUDIO_CENTER
    return {**networks, CENTER: load_tensors(folder)[center]}


def _published(file: AnyPath, model: ModelConfig, modality: Modality | None) -> list[WeightSource]:
    found: dict[Modality, list[PublishedEncoder]] = {}
    with on_disk(file) as copy:
        for encoder in read_published_encoders(copy, modality=modality):
            found.setdefault(encoder.modality, []).append(encoder)
    return [
        _published_source(file, encoders, published_model(encoders[0], model))
        for encoders in found.values()
    ]


def _published_source(
    file: AnyPath, encoders: list[PublishedEncoder], model: ModelConfig
) -> WeightSource:
    def load() -> Networks:
        if len(encoders) == 1:
            return _both_roles(build_published_encoder(encoders[0], model))
        networks: dict[str, Tensor] = {}
        for one in encoders:
            weights = build_published_encoder(one, model).state_dict()
            networks |= {f"{one.role}.{name}": tensor for name, tensor in weights.items()}
        with on_disk(file) as copy:
            return {**networks, **published_parts(copy, model, encoders[0].modality)}

    role = encoders[0].role if len(encoders) == 1 else None
    return WeightSource(
        modality=encoders[0].modality,
        model=model,
        location=str(file),
        load=load,
        content=partial(_digest, file),
        details={"role": role or ""},
    )


def _both_roles(encoder: Encoder) -> Networks:
    weights = encoder.state_dict()
    return {f"{role}.{name}": tensor for role in _ROLES for name, tensor in weights.items()}


def _digest(file: AnyPath) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def loaded(source: WeightSource) -> Networks:
    """Reads the weights of a source.

    Raises:
        UserError: If they are damaged or gone; in one line.
    """
    try:
        return source.load()
    except (ValueError, RuntimeError, OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{source.location} cannot be loaded: {one_line(error)}") from error
