"""Normalized log-mel spectrograms, the input of the audio encoder.

Equal to librosa's: Hann window, power spectrum, Slaney mel scale and norm, reflected edges. Mean
and standard deviation of the normalization are settings. With the defaults, 64,000 samples give 80
bins x 448 frames, and silence gives -2.3976.

Paper: XKD, section 4.
"""

import torch
import torchaudio
from torch import nn

from xkd_core.config import AudioConfig
from xkd_core.shapes import Float, Tensor

LOG_FLOOR = 1.1920929e-7
"""Epsilon of float32, added before the logarithm."""


class LogMel(nn.Module):
    """Computes normalized log-mel spectrograms, in float32 also under autocast."""

    window: Tensor
    filterbank: Tensor

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.n_fft = config.n_fft
        self.hop_length = config.hop_length
        self.mean = config.mean
        self.std = config.std
        filterbank = mel_filterbank(config)
        # They follow from the settings, so checkpoints do not hold them.
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)
        self.register_buffer("filterbank", filterbank, persistent=False)

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
