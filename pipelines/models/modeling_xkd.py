"""A registered encoder for Hugging Face's transformers, which runs this file in the model's folder.

    model = AutoModel.from_pretrained(MODEL, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(MODEL, trust_remote_code=True)
    embeddings = model(**processor(frames)).pooler_output

The network is that of `code/xkd_*`, beside this file; the weights are those of `model.safetensors`.
"""

import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

_CODE = ("xkd_code.py", "modeling_xkd.py", "preprocessor_config.json")


def _folder(name: str | None, revision: str | None = None) -> Path:
    """The folder of a model, downloaded if it lies on the Hub."""
    if not name:
        raise ValueError("an XKD encoder must be made with from_pretrained: its code lies there")
    if Path(name).is_dir():
        return Path(name)
    files = [*_CODE, "config.json", "code/**"]
    return Path(snapshot_download(name, revision=revision, allow_patterns=files))


def _import(folder: Path, module: str) -> Any:
    import_code = runpy.run_path(str(folder / "xkd_code.py"))["import_code"]
    return import_code(folder, f"pipelines.models.{module}")


def _keep_code(source: Path, target: Path) -> None:
    """Copies the code of a model beside weights that were saved elsewhere."""
    if source.resolve() == target.resolve():
        return
    for name in _CODE:
        shutil.copyfile(source / name, target / name)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source / "code", target / "code", dirs_exist_ok=True, ignore=ignored)


class XKDConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is optional
    """The settings of an encoder, as `config.json` has them."""

    model_type = "xkd_encoder"


class XKDModel(PreTrainedModel):  # type: ignore[misc]  # transformers is optional
    """A pretrained encoder: views of clips to tokens and an embedding."""

    config_class = XKDConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: XKDConfig) -> None:
        super().__init__(config)
        folder = _folder(config.name_or_path, getattr(config, "_commit_hash", None))
        files = _import(folder, "encoder_files")
        self.encoder = files.new_encoder(files.info_of(config.to_dict()))
        self._pool = files.pool_patches
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Does nothing: all weights are in the file."""

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_features: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPooling | tuple[Tensor, Tensor]:
        """Computes tokens (B, 1 + N, D), CLS first, and their mean without CLS (B, D)."""
        clips = input_features if pixel_values is None else pixel_values
        if clips is None:
            raise ValueError("pixel_values (video) or input_features (audio) must be given")
        tokens = self.encoder(clips.to(self.encoder.cls_token.dtype))
        pooled = self._pool(tokens)
        if return_dict is False:
            return tokens, pooled
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Saves as transformers does, with the code that the weights need."""
        super().save_pretrained(save_directory, **kwargs)
        revision = getattr(self.config, "_commit_hash", None)
        _keep_code(_folder(self.config.name_or_path, revision), Path(save_directory))


class XKDProcessor(FeatureExtractionMixin):  # type: ignore[misc]  # transformers is optional
    """Turns clips into what `XKDModel` takes.

    Video: frames (T, H, W, 3) or a batch of them, uint8 or floats from 0 to 1. Audio: waveforms
    (S,) or a batch, int16 or floats from -1 to 1. Clips have the length, and the frames or samples
    a second, of `config.json`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *_arguments: Any, **kwargs: Any
    ) -> "XKDProcessor":
        """Makes the processor of a model's folder."""
        folder = _folder(str(pretrained_model_name_or_path), kwargs.get("revision"))
        processor = cls()
        processor._folder = folder
        module = _import(folder, "encoder_module")
        files = _import(folder, "encoder_files")
        info = files.read_encoder_info(folder)
        with torch.device("cpu"):
            processor._view = module.make_view(info)
        processor._rank = 4 if info.modality == "video" else 1
        processor._name = "pixel_values" if info.modality == "video" else "input_features"
        return processor

    def __call__(self, clips: Any, return_tensors: str = "pt", **_kwargs: Any) -> BatchFeature:
        """Computes the views of clips."""
        if isinstance(clips, list | tuple):
            clips = np.stack([np.asarray(clip) for clip in clips])
        batch = torch.as_tensor(clips)
        batch = batch.unsqueeze(0) if batch.ndim == self._rank else batch
        views = self._view(batch)
        return BatchFeature({self._name: views}, tensor_type=return_tensors)

    def save_pretrained(self, save_directory: Any, **_kwargs: Any) -> None:
        """Copies the files that the processor is made of."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        _keep_code(self._folder, Path(save_directory))
        if not (Path(save_directory) / "config.json").exists():
            shutil.copyfile(self._folder / "config.json", Path(save_directory) / "config.json")
