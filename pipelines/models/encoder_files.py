"""One encoder on disk: weights as safetensors, everything else as JSON.

    encoder.safetensors   the weights
    encoder.json          modality, network, preprocessing, provenance

These files are part of a registered model, so reading them needs neither Ray nor a registry.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from xkd_core.config import ModelConfig
from xkd_core.encoders import Encoder, Modality, build_encoder

FORMAT_VERSION = 1
WEIGHTS_FILE = "encoder.safetensors"
SETTINGS_FILE = "encoder.json"


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
    weights = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE)
    values = {
        "format_version": FORMAT_VERSION,
        "modality": info.modality,
        "clips": asdict(info.clips),
        "model": info.model.model_dump(mode="json"),
        "provenance": dict(info.provenance),
    }
    (folder / SETTINGS_FILE).write_text(json.dumps(values, indent=1) + "\n")


def load_encoder(folder: Path) -> tuple[Encoder, EncoderInfo]:
    """Reads what `export_encoder` wrote, ready for inference on the CPU.

    Raises:
        ValueError: If it was written in another format.
    """
    values = json.loads((folder / SETTINGS_FILE).read_text())
    if values["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"encoder has format {values['format_version']}, "
            f"but this code reads format {FORMAT_VERSION}"
        )
    info = EncoderInfo(
        modality=values["modality"],
        model=ModelConfig.model_validate(values["model"]),
        clips=ClipSettings(**values["clips"]),
        provenance=values["provenance"],
    )
    # Without numbers first: neither torch's defaults nor its random state play a part.
    with torch.device("meta"):
        encoder = build_encoder(info.model, info.modality)
    with torch.device("cpu"):
        encoder.load_state_dict(load_file(folder / WEIGHTS_FILE), assign=True)
    return encoder.eval().requires_grad_(False), info
