"""The log-mel spectrogram is the published one."""

import math

import numpy as np
import pytest
import torch

from xkd_core.config import AudioConfig
from xkd_core.views.log_mel import LogMel, mel_filterbank


@pytest.fixture
def golden(golden_dir):
    return np.load(golden_dir / "schedules_and_spectrogram.npz")


def test_filterbank_is_the_golden_one(golden):
    filterbank = mel_filterbank(AudioConfig())
    np.testing.assert_allclose(filterbank, golden["mel_filterbank"], atol=2e-7)


def test_spectrogram_of_four_seconds_is_the_golden_one(golden):
    spectrogram = LogMel(AudioConfig())(torch.from_numpy(golden["waveform"]))
    assert spectrogram.shape == (80, 448)
    np.testing.assert_allclose(spectrogram, golden["normalised"], atol=2e-4)


def test_silence_maps_to_one_known_value():
    spectrogram = LogMel(AudioConfig())(torch.zeros(2, 16_000))
    assert spectrogram.shape == (2, 80, 112)
    torch.testing.assert_close(spectrogram, torch.full((2, 80, 112), -2.3976), atol=1e-4, rtol=0)


def test_any_leading_axes_are_kept():
    log_mel = LogMel(AudioConfig())
    waveform = torch.rand(2, 3, 16_000) - 0.5
    spectrogram = log_mel(waveform)
    assert spectrogram.shape == (2, 3, 80, 112)
    torch.testing.assert_close(spectrogram[1, 2], log_mel(waveform[1, 2]))


def test_loudness_shifts_the_spectrogram_by_a_constant():
    waveform = torch.rand(16_000) - 0.5
    config = AudioConfig()
    log_mel = LogMel(config)
    shift = log_mel(0.5 * waveform) - log_mel(waveform)
    expected = torch.full_like(shift, 2 * math.log(0.5) / config.std)
    torch.testing.assert_close(shift, expected, atol=1e-3, rtol=0)


def test_a_tone_is_loudest_in_the_bin_of_its_frequency():
    config = AudioConfig()
    times = torch.arange(16_000) / config.sample_rate
    spectrogram = LogMel(config)(0.5 * torch.sin(2 * math.pi * 1000.0 * times))
    # Slaney's scale is linear below 1 kHz: 15 mels; 8 kHz lies at 45.245.
    expected_bin = round(15 / 45.245 * (config.num_mels + 1)) - 1
    assert (spectrogram[:, 8:-8].argmax(dim=0) - expected_bin).abs().max() <= 1


def test_autocast_changes_nothing():
    log_mel = LogMel(AudioConfig())
    waveform = torch.rand(1, 16_000) - 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = log_mel(waveform)
    assert under_autocast.dtype == torch.float32
    torch.testing.assert_close(under_autocast, log_mel(waveform), atol=0, rtol=0)


def test_checkpoints_hold_nothing_of_it():
    assert not LogMel(AudioConfig()).state_dict()
