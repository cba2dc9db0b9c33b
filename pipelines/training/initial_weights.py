"""What a training begins from: `init` is resolved once, when its run begins.

    init=models:/xkd-video@champion   ->  models:/xkd-video/3, fitted to the model
    runs/NAME/init.safetensors            what the workers load; removed once training is over
    runs/NAME/init.json                   where each network comes from (`origins`)

An alias that moves later, or a source that is gone, changes nothing for a run that has begun: until
its first checkpoint it begins from its own copy, and then it continues from checkpoints, which
carry `origins` along.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import save_file

from pipelines.config.base import TrackingSettings
from pipelines.config.init import InitSettings
from pipelines.config.pretrain import PretrainConfig
from pipelines.errors import UserError
from pipelines.files import replacing, write_json
from pipelines.models.checkpoints import newest_checkpoint
from pipelines.storage import AnyPath, path_of
from pipelines.tracking.run_folder import RunFolder
from pipelines.training.initial_notes import beginnings, remarks
from pipelines.training.weight_source import WeightSource, loaded, open_weights
from xkd_core.encoders import MODALITIES, Modality
from xkd_core.shapes import Tensor
from xkd_core.weights.initial import Fitted, GivenNetworks, fitted, join, misfits

TENSORS_FILE = "init.safetensors"
RECORD_FILE = "init.json"


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a run begins from."""

    file: str | None
    """Their file; None once the run has a checkpoint."""
    origins: Mapping[str, Mapping[str, str]]
    """For each modality: where its networks come from, a content hash, and what is known of it."""
    remarks: tuple[str, ...] = ()
    """What a user may not expect of them; empty for a run that has begun before."""


def prepare_weights(config: PretrainConfig, tracking: TrackingSettings) -> InitialWeights | None:
    """Resolves `init` for a run that begins; returns what it resolved to for one that has begun.

    Args:
        config: Settings of the training; the caller holds the lock of its folder.
        tracking: Where MLflow is.

    Raises:
        UserError: If the weights are gone, damaged, or do not fit the model.
    """
    folder = path_of(config.output) / config.name
    if config.init is None:
        return None
    record, file = folder / RECORD_FILE, folder / TENSORS_FILE
    if record.exists() and _has_begun(folder):
        origins = json.loads(record.read_text())
        if newest_checkpoint(folder) is not None:
            return InitialWeights(None, origins)
        if file.exists():
            return InitialWeights(str(file), origins)
        config = config.model_copy(update={"init": _fixed(config.init, origins)})
    sources = _sources(config, tracking)
    fits = _fitted(config, sources)
    tensors = _joined(config, {modality: one.tensors for modality, one in fits.items()})
    _check_finite(tensors)
    with replacing(file) as temporary:
        save_file({name: one.contiguous().clone() for name, one in tensors.items()}, temporary)
    assert config.init is not None
    origins = {modality: _origin(config.init, source) for modality, source in sources.items()}
    write_json(record, origins)
    return InitialWeights(str(file), origins, tuple(remarks(config, sources, fits)))


def _fixed(init: InitSettings, origins: Mapping[str, Mapping[str, str]]) -> InitSettings:
    """Names what a run resolved `init` to, whatever its aliases mean now."""
    sources: dict[str, str | None] = {
        modality: origins.get(modality, {}).get("source") for modality in MODALITIES
    }
    return init.model_copy(update={"source": None, **sources})


def discard_weights(folder: AnyPath) -> None:
    """Removes the copy of the weights from a run whose checkpoints have taken their place."""
    (folder / TENSORS_FILE).unlink(missing_ok=True)


def init_mistakes(config: PretrainConfig) -> list[str]:
    """Returns why a training cannot begin from the weights that it names."""
    if _has_begun(path_of(config.output) / config.name):
        return []
    if config.init is None:
        return _frozen_mistakes(config, set(MODALITIES) if config.resume else set())
    try:
        sources = _sources(config, config.tracking)
        if _shares_two(config, sources):
            _joined(config, {name: one.tensors for name, one in _fitted(config, sources).items()})
    except UserError as error:
        return [str(error)]
    learning = config.init.networks != "teachers"
    return _frozen_mistakes(config, set(sources) if learning else set())


def init_notes(config: PretrainConfig) -> list[str]:
    """Describes for `--dry-run` what a training begins from; empty if that cannot be read."""
    if config.init is None or _has_begun(path_of(config.output) / config.name):
        return []
    try:
        sources = _sources(config, config.tracking)
        fits = _fitted(config, sources)
    except UserError:
        return []
    return [
        *(f"would begin  {line}" for line in beginnings(config, sources)),
        *(f"note: {sentence}" for sentence in remarks(config, sources, fits)),
    ]


def _has_begun(folder: AnyPath) -> bool:
    return bool(RunFolder(folder).began_with) or newest_checkpoint(folder) is not None


def _sources(config: PretrainConfig, tracking: TrackingSettings) -> dict[Modality, WeightSource]:
    """Opens the source of each modality that has one, and checks that it fits."""
    assert config.init is not None
    found: dict[Modality, tuple[str, WeightSource]] = {}
    for setting, location in config.init.locations():
        wanted: Modality | None = None
        if setting != "init":
            wanted = "video" if setting == "init.video" else "audio"
        try:
            opened = open_weights(location, config.model, tracking, wanted)
        except UserError as error:
            raise UserError(f"{setting}: {error}") from error
        usable = [source for source in opened if wanted in (None, source.modality)]
        if not usable:
            raise UserError(
                f"{setting} ({location}) must be an encoder of {wanted}, but is one of "
                f"{opened[0].modality}"
            )
        found |= {source.modality: (setting, source) for source in usable}
    for modality, (setting, source) in found.items():
        if wrong := misfits(source.model, config.model, modality):
            raise UserError(
                f"{setting} ({source.location}) does not fit: {'; '.join(wrong)}. Take the "
                "settings of the encoder, or another encoder"
            )
    _check_choice(config, set(found))
    return {modality: found[modality][1] for modality in MODALITIES if modality in found}


def _check_choice(config: PretrainConfig, given: set[Modality]) -> None:
    assert config.init is not None
    chosen = config.init.shared_blocks
    if chosen is None:
        return
    if config.model.variant == "modality_specific":
        raise UserError(
            f"init.shared_blocks ({chosen}) would do nothing: model.variant "
            f"({config.model.variant}) shares no blocks"
        )
    if chosen not in given:
        raise UserError(
            f"init.shared_blocks ({chosen}) must be an encoder that init gives: "
            f"{', '.join(sorted(given))}"
        )


def _fitted(
    config: PretrainConfig, sources: Mapping[Modality, WeightSource]
) -> dict[Modality, Fitted]:
    assert config.init is not None
    return {
        modality: fitted(
            GivenNetworks(source.model, loaded(source)), config.model, modality, config.init.role
        )
        for modality, source in sources.items()
    }


def _joined(
    config: PretrainConfig, fits: Mapping[Modality, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    assert config.init is not None
    try:
        return join(config.model, fits, config.init.networks, config.init.shared_blocks)
    except ValueError as error:
        raise UserError(str(error)) from error


def _shares_two(config: PretrainConfig, sources: Mapping[Modality, WeightSource]) -> bool:
    return config.model.variant != "modality_specific" and len(sources) == len(MODALITIES)


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor.float()).all():
            raise UserError(f"init: {name} has numbers that are not finite")


def _frozen_mistakes(config: PretrainConfig, begun: set[Modality]) -> list[str]:
    """Returns which new encoders would have blocks that never learn."""
    frozen = {modality: getattr(config.optimizer, _frozen(modality)) for modality in MODALITIES}
    return [
        f"optimizer.{_frozen(modality)} ({count}) must be 0 for a {modality} student with new "
        "weights, whose first blocks would never learn: name its weights with init"
        for modality, count in frozen.items()
        if count and modality not in begun
    ]


def _frozen(modality: str) -> str:
    return f"frozen_{modality}_blocks"


def _origin(init: InitSettings, source: WeightSource) -> dict[str, str]:
    known = {name: value for name, value in source.details.items() if value}
    role = init.role if "step" in known else None  # a checkpoint has both networks
    return {
        "source": source.location,
        "networks": init.networks,
        "content": source.content(),
        **known,
        **({"role": role} if role else {}),
    }
