"""One encoder on disk: weights as safetensors, everything else as JSON, in one folder.

    model.safetensors          the weights
    config.json                modality, network, preprocessing, provenance
    preprocessor_config.json   which class preprocesses, for transformers

Plain files: `safetensors` and `json` read them. Keys such as `auto_map` are transformers', which
loads the same folder. Reading an encoder needs neither Ray nor a registry.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from xkd_core.config import ModelConfig
from xkd_core.encoders import Encoder, Modality, build_encoder, pool_patches

__all__ = [
    "ClipSettings",
    "EncoderInfo",
    "export_encoder",
    "info_of",
    "load_encoder",
    "new_encoder",
    "pool_patches",  # for `modeling_xkd.py`
    "read_encoder_info",
    "weights_file",
]

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
SETTINGS_FILE = "config.json"
OLDER_WEIGHTS_FILE = "encoder.safetensors"
OLDER_SETTINGS_FILE = "encoder.json"
OLDER_FOLDER = "artifacts/encoder"
"""Where in the folder of a model older versions have both."""
PREPROCESSOR_FILE = "preprocessor_config.json"
PREFIX = "encoder."
"""Of the names of all weights: the encoder is a part of the modules that hold it."""
_PROCESSOR = "modeling_xkd.XKDProcessor"
_TRANSFORMERS = {
    "model_type": "xkd_encoder",
    "architectures": ["XKDModel"],
    "auto_map": {
        "AutoConfig": "modeling_xkd.XKDConfig",
        "AutoModel": "modeling_xkd.XKDModel",
        "AutoFeatureExtractor": _PROCESSOR,
        "AutoProcessor": _PROCESSOR,
    },
    "dtype": "float32",
}
_PREPROCESSOR = {
    "feature_extractor_type": "XKDProcessor",
    "processor_class": "XKDProcessor",
    "auto_map": {"AutoFeatureExtractor": _PROCESSOR, "AutoProcessor": _PROCESSOR},
}


@dataclass(frozen=True)
class ClipSettings:
    """How media are cut into segments, and how many windows of a segment are embedded."""

    segment_seconds: float = 5.0
    min_segment_seconds: float = 1.1
    short_side: int = 128
    num_windows: int = 2


@dataclass(frozen=True)
class EncoderInfo:
    """Everything about an encoder except its weights."""

    modality: Modality
    model: ModelConfig
    clips: ClipSettings
    provenance: Mapping[str, Any]
    """Where the weights come from, for people to read."""

    @property
    def rate(self) -> float:
        """Frames or samples per second of the encoder's input."""
        if self.modality == "video":
            return self.model.video.frame_rate
        return float(self.model.audio.sample_rate)


def export_encoder(encoder: Encoder, info: EncoderInfo, folder: Path) -> None:
    """Writes weights and settings into a folder, creating it if necessary."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {PREFIX + name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    values = {
        **_TRANSFORMERS,
        "format_version": FORMAT_VERSION,
        "modality": info.modality,
        "hidden_size": info.model.encoder.width,
        "clips": asdict(info.clips),
        "model": info.model.model_dump(mode="json"),
        "provenance": dict(info.provenance),
    }
    (folder / SETTINGS_FILE).write_text(json.dumps(values, indent=1) + "\n")
    (folder / PREPROCESSOR_FILE).write_text(json.dumps(_PREPROCESSOR, indent=1) + "\n")


def read_encoder_info(folder: Path) -> EncoderInfo:
    """Reads what `export_encoder` wrote, except the weights.

    Raises:
        ValueError: If it was written in another format.
    """
    file = folder / SETTINGS_FILE
    file = file if file.exists() else folder / OLDER_SETTINGS_FILE
    return info_of(json.loads(file.read_text()))


def info_of(values: Mapping[str, Any]) -> EncoderInfo:
    """The settings of an encoder from the values of `config.json`.

    Raises:
        ValueError: If they were written in another format.
    """
    if values["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"encoder has format {values['format_version']}, "
            f"but this code reads format {FORMAT_VERSION}"
        )
    return EncoderInfo(
        modality=values["modality"],
        model=ModelConfig.model_validate(values["model"]),
        clips=ClipSettings(**values["clips"]),
        provenance=values["provenance"],
    )


def new_encoder(info: EncoderInfo) -> Encoder:
    """An encoder without weights of its own, on the device that torch is set to."""
    return build_encoder(info.model, info.modality)


def load_encoder(folder: Path) -> tuple[Encoder, EncoderInfo]:
    """Reads what `export_encoder` wrote, ready for inference on the CPU.

    Raises:
        ValueError: If it was written in another format.
    """
    info = read_encoder_info(folder)
    # Without numbers first: neither torch's defaults nor its random state play a part.
    with torch.device("meta"):
        encoder = new_encoder(info)
    with torch.device("cpu"):
        weights = load_file(weights_file(folder))
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    encoder.load_state_dict(weights, assign=True)
    return encoder.eval().requires_grad_(False), info


def weights_file(folder: Path) -> Path:
    """The file of the weights, which had another name in older versions."""
    file = folder / WEIGHTS_FILE
    return file if file.exists() else folder / OLDER_WEIGHTS_FILE
