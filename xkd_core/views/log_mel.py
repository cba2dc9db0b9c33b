"""Normalized log-mel spectrograms, the input of the audio encoder.

Equal to librosa's: Hann window, power spectrum, Slaney mel scale and norm, reflected edges. Mean
and standard deviation of the normalization are settings. With the defaults, 64,000 samples give 80
bins x 448 frames, and silence gives -2.3976.

Paper: XKD, section 4.
"""

from typing import Any

import torch
import torchaudio
from torch import nn
from torch.overrides import TorchFunctionMode

from xkd_core.config import AudioConfig
from xkd_core.shapes import Float, Tensor

LOG_FLOOR = 1.1920929e-7
"""Epsilon of float32, added before the logarithm."""


class LogMel(nn.Module):
    """Computes normalized log-mel spectrograms, in float32 also under autocast.

    The buffers stay float32 when a network is cast: a spectrogram in bfloat16 would be noise. They
    follow from the settings, so checkpoints do not hold them.
    """

    window: Tensor
    filterbank: Tensor

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.n_fft = config.n_fft
        self.hop_length = config.hop_length
        self.mean = config.mean
        self.std = config.std
        self.register_buffer("window", torch.empty(0), persistent=False)
        self.register_buffer("filterbank", torch.empty(0), persistent=False)
        self.reset_buffers(torch.empty(0).device)

    def reset_buffers(self, device: torch.device) -> None:
        """Computes the buffers; for frameworks that make modules on the meta device first."""
        # Where the filters are computed, they must have numbers.
        with torch.device("cpu"):
            filterbank = mel_filterbank(self.config)
            window = torch.hann_window(self.n_fft, dtype=torch.float32)
        self.window, self.filterbank = window.to(device), filterbank.to(device)

    def _apply(self, fn: Any, recurse: bool = True) -> "LogMel":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # PyTorch has no types here
        if self.window.dtype != torch.float32 or self.filterbank.dtype != torch.float32:
            self.reset_buffers(self.window.device)
        return self

    def forward(self, waveform: Float[Tensor, "*B S"]) -> Float[Tensor, "*B M T"]:
        """Maps samples in [-1, 1] to `S // hop_length + 1` spectrogram frames."""
        batch_shape = waveform.shape[:-1]
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform.float().reshape(-1, waveform.shape[-1]),
                n_fft=self.n_fft,
                hop_length=self.hop_length,
                window=self.window,
                pad_mode="reflect",
                return_complex=True,
            )
            power = spectrum.real.square() + spectrum.imag.square()
            log_mel = (self.filterbank @ power).add_(LOG_FLOOR).log_()
            normalized = log_mel.sub_(self.mean).div_(self.std)
        return normalized.reshape(*batch_shape, *normalized.shape[-2:])


def mel_filterbank(config: AudioConfig) -> Float[Tensor, "M frequencies"]:
    """Returns Slaney's triangular filters, from 0 to half the sample rate."""
    with _Float32():
        filterbank: Tensor = torchaudio.functional.melscale_fbanks(
            n_freqs=config.n_fft // 2 + 1,
            f_min=0.0,
            f_max=config.sample_rate / 2,
            n_mels=config.num_mels,
            sample_rate=config.sample_rate,
            norm="slaney",
            mel_scale="slaney",
        )
    return filterbank.T.contiguous()


class _Float32(TorchFunctionMode):
    """Makes torchaudio's tensors float32, whatever torch's default is; in this thread alone."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.linspace, torch.zeros):
            kwargs = {"dtype": torch.float32, **kwargs}
        return func(*args, **kwargs)
