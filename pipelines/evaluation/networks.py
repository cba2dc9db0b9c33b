"""The encoders that an evaluation compares, and where their weights lie.

A network is an encoder for each modality, which may come from different files. `EncoderSource` says
where one is without holding its weights, so that workers load it themselves.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from pipelines.config.pretrain import PretrainConfig
from pipelines.config.published import PublishedSettings
from pipelines.models.checkpoints import load_model, read_info
from pipelines.models.encoder_files import load_encoder, read_encoder_info
from pipelines.storage import AnyPath, path_of
from pipelines.transfers import on_disk
from xkd_core.config import ModelConfig
from xkd_core.encoders import MODALITIES, Encoder, Modality, build_encoder
from xkd_core.published.encoders import (
    build_published_encoder,
    infer_model,
    read_published_encoders,
)
from xkd_core.xkd import XKD

Role = Literal["teacher", "student"]


@dataclass(frozen=True)
class EvaluatedEncoder:
    """An encoder, the clips that it takes, and its projection head if it is known."""

    encoder: Encoder
    model: ModelConfig
    head: nn.Module | None = None

    def content_hash(self) -> str:
        """Hash of settings and weights; equal for the same encoder in another file."""
        digest = hashlib.sha256(self.model.model_dump_json().encode())
        for part in (self.encoder, self.head):
            for name, tensor in sorted(part.state_dict().items()) if part else ():
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
        return digest.hexdigest()


Network = Mapping[Modality, EvaluatedEncoder]
"""Encoders by modality; one may be missing."""


def network_of(model: XKD, config: ModelConfig, role: Role) -> dict[Modality, EvaluatedEncoder]:
    """Returns both encoders of one role, with their heads."""
    found: dict[Modality, EvaluatedEncoder] = {}
    for modality in MODALITIES:
        encoder = model.get_submodule(f"{modality}_{role}")
        assert isinstance(encoder, Encoder)
        head = model.get_submodule(f"{modality}_{role}_head")
        found[modality] = EvaluatedEncoder(encoder, config, head)
    return found


@dataclass(frozen=True)
class EncoderSource:
    """Where the weights of one or two encoders lie, on a path that every worker sees."""

    given: str
    """As the user named it."""
    kind: Literal["checkpoint", "exported", "published"]
    path: str
    modalities: tuple[Modality, ...]
    role: Role
    published: PublishedSettings = field(default_factory=PublishedSettings)
    """For `kind` published."""
    step: int = 0
    run_id: str = ""
    """Of the training; empty if it is not known."""

    def load(self, *, trained: bool = True, seed: int = 0) -> dict[Modality, EvaluatedEncoder]:
        """Loads the encoders onto the CPU, or gives the same ones before any training.

        Those of a checkpoint begin as its training did; of other files no seed is known, and
        `seed` draws their weights.

        Raises:
            ValueError: If the file does not fit the settings.
        """
        if self.kind == "checkpoint":
            model, config = load_model(path_of(self.path), trained=trained)
            both = network_of(model, config.model, self.role)
            return {modality: both[modality] for modality in self.modalities}
        if self.kind == "exported":
            with on_disk(path_of(self.path)) as folder:
                encoder, info = load_encoder(folder)
            found = {info.modality: EvaluatedEncoder(encoder, info.model)}
        else:
            found = self._published()
        return found if trained else {m: _untrained(one, m, seed) for m, one in found.items()}

    def model_config(self, modality: Modality) -> ModelConfig:
        """Returns what an encoder takes, without its weights where a file says so.

        Raises:
            ValueError: If the file does not fit the settings.
        """
        if self.kind == "checkpoint":
            config = PretrainConfig.model_validate(read_info(path_of(self.path)).config)
            return config.model
        if self.kind == "exported":
            with on_disk(path_of(self.path)) as folder:
                return read_encoder_info(folder).model
        return self.load()[modality].model

    def _published(self) -> dict[Modality, EvaluatedEncoder]:
        settings, found = self.published, {}
        for modality in self.modalities:
            role = self.role if len(self.modalities) > 1 else None
            with on_disk(path_of(self.path)) as file:
                every = read_published_encoders(file, modality=modality, role=role)
            published = next((one for one in every if one.role == self.role), every[0])
            model = infer_model(
                published,
                video=settings.video,
                audio=settings.audio,
                num_heads=settings.num_heads,
            )
            encoder = build_published_encoder(published, model).eval().requires_grad_(False)
            found[modality] = EvaluatedEncoder(encoder, model)
        return found


def _untrained(like: EvaluatedEncoder, modality: Modality, seed: int) -> EvaluatedEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(like.model, modality)
    return EvaluatedEncoder(encoder.eval().requires_grad_(False), like.model)


def checkpoint_source(checkpoint: AnyPath, given: str, role: Role) -> EncoderSource:
    """Describes both encoders of a checkpoint.

    Raises:
        UserError: If it was written in another format.
    """
    info = read_info(checkpoint)
    return EncoderSource(
        given,
        "checkpoint",
        str(checkpoint),
        MODALITIES,
        role,
        step=info.next_step,
        run_id=info.run_id,
    )


def load_network(
    sources: Sequence[EncoderSource], *, trained: bool = True, seed: int = 0
) -> dict[Modality, EvaluatedEncoder]:
    """Loads a network from its sources."""
    found: dict[Modality, EvaluatedEncoder] = {}
    for source in sources:
        found |= source.load(trained=trained, seed=seed)
    return found
