"""A registered encoder as a `torch.nn.Module`, to fine-tune or to build into another network.

    clips as integers  ->  view (resized and normalized, float32)  ->  tokens  ->  embedding

It travels inside the model and needs torch alone: no MLflow, no media library.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.models.encoder_files import EncoderInfo, load_encoder
from xkd_core.config import AudioConfig, VideoConfig
from xkd_core.encoders import Encoder, pool_patches
from xkd_core.views.log_mel import LogMel
from xkd_core.views.resampling import antialias_matrix
from xkd_core.views.video import normalize_video
from xkd_core.views.views import LARGEST_SAMPLE

_LARGEST_PIXEL = 255.0


class VideoView(nn.Module):
    """Takes the largest central square of each frame, resizes it, and normalizes the colors."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        self.num_frames = config.num_frames
        self.size = config.size

    def forward(self, frames: Tensor) -> Tensor:
        """Maps frames (B, T, H, W, 3), uint8 or floats from 0 to 1, to (B, 3, T, size, size).

        Raises:
            TypeError: If the frames are no tensor.
            ValueError: If the frames have another shape.
        """
        _check_tensor("frames", frames)
        if frames.ndim != 5 or frames.shape[1] != self.num_frames or frames.shape[-1] != 3:
            raise ValueError(
                f"frames must have the shape (B, {self.num_frames}, H, W, 3), "
                f"but have {tuple(frames.shape)}"
            )
        with _float32(frames.device):
            pixels = frames.float() / (1.0 if frames.is_floating_point() else _LARGEST_PIXEL)
            over_rows, over_columns = self._matrices(frames)
            pixels = torch.einsum("oh,bthwc,pw->bctop", over_rows, pixels, over_columns)
            return normalize_video(pixels)

    def _matrices(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Builds the matrices (size, H) and (size, W) that crop and resize."""
        sizes = frames.shape[2:4]
        # As tensors: exported programs need no proofs about the sizes then.
        full = [torch.full((1,), size, device=frames.device) for size in sizes]
        side = full[0].minimum(full[1])
        flip = torch.zeros(1, dtype=torch.bool, device=frames.device)
        matrices = [
            antialias_matrix(
                (length - side) // 2, side, flip, input_size=size, output_size=self.size
            )[0]
            for length, size in zip(full, sizes, strict=True)
        ]
        return matrices[0], matrices[1]


class AudioView(nn.Module):
    """Computes normalized log-mel spectrograms."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.num_samples = config.num_samples
        self.log_mel = LogMel(config)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Maps samples (B, S), int16 or floats from -1 to 1, to spectrograms (B, 1, M, T).

        Raises:
            TypeError: If the waveforms are no tensor.
            ValueError: If the waveforms have another shape.
        """
        _check_tensor("waveforms", waveforms)
        if waveforms.ndim != 2 or waveforms.shape[1] != self.num_samples:
            raise ValueError(
                f"waveforms must have the shape (B, {self.num_samples}), "
                f"but have {tuple(waveforms.shape)}"
            )
        scale = 1.0 if waveforms.is_floating_point() else LARGEST_SAMPLE
        spectrogram: Tensor = self.log_mel(waveforms.float() / scale)
        return spectrogram.unsqueeze(1)


def _check_tensor(name: str, clips: Tensor) -> None:
    if not isinstance(clips, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, not {type(clips).__name__}; "
            "torch.from_numpy makes one of an array"
        )


def make_view(info: EncoderInfo) -> VideoView | AudioView:
    """Makes what an encoder's clips go through first."""
    return VideoView(info.model.video) if info.modality == "video" else AudioView(info.model.audio)


class EncoderModule(nn.Module):
    """Embeds clips of the length that the encoder was trained on.

    A video encoder takes `frames` (B, T, H, W, 3) at `info.rate` frames a second, uint8 or floats
    from 0 to 1; an audio encoder takes `waveforms` (B, S) at `info.rate` samples a second, int16
    or floats from -1 to 1. T and S are fixed; B, H and W are not. The view is computed in float32;
    then everything has the dtype and the device of the parameters.
    """

    def __init__(self, encoder: Encoder, info: EncoderInfo) -> None:
        super().__init__()
        self.info = info
        self.view = make_view(info)
        self.encoder = encoder

    def forward(self, clips: Tensor) -> Tensor:
        """Computes embeddings (B, D) in float32: the mean over the patch tokens."""
        return pool_patches(self.forward_features(clips))

    def forward_features(self, clips: Tensor) -> Tensor:
        """Computes tokens (B, 1 + N, D) after the final norm, the CLS token first."""
        view = self.view(clips)
        return self.encoder(view.to(self.encoder.cls_token.dtype))


def load_module(folder: Path) -> EncoderModule:
    """Loads the encoder of a model's folder onto the CPU.

    Raises:
        ValueError: If it was written in another format.
    """
    with torch.device("cpu"):
        encoder, info = load_encoder(folder)
        return EncoderModule(encoder.requires_grad_(True), info).eval()


def _float32(device: torch.device) -> AbstractContextManager[object]:
    """Leaves out autocast where there is one; exported programs have none."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
