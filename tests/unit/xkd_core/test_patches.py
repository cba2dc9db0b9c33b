"""Facts about patches."""

import numpy as np
import pytest
import torch

from xkd_core.masking import take_tokens
from xkd_core.patches import (
    denormalize_patches,
    normalize_patches,
    patch_errors,
    patch_grid,
    patch_statistics,
    patches_to_spectrogram,
    patches_to_video,
    spectrogram_to_patches,
    video_to_patches,
)


def test_video_patches_are_listed_row_major_with_channels_last():
    video = torch.randn(2, 3, 4, 6, 8)
    patches = video_to_patches(video, 2, 2).reshape(2, 2, 3, 4, 2, 2, 2, 3)
    for time, row, column in np.ndindex(2, 3, 4):
        expected = video[
            :, :, 2 * time : 2 * time + 2, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2
        ]
        assert torch.equal(patches[:, time, row, column], expected.movedim(1, -1))


def test_spectrogram_patches_are_listed_by_frequency_first():
    spectrogram = torch.randn(2, 1, 8, 12)
    patches = spectrogram_to_patches(spectrogram, 4, 3)
    assert torch.equal(patches[:, 5].reshape(2, 4, 3), spectrogram[:, 0, 4:8, 3:6])


def test_patches_go_back_to_the_clip_they_came_from():
    video, spectrogram = torch.randn(2, 3, 4, 6, 8), torch.randn(2, 1, 8, 12)
    assert torch.equal(patches_to_video(video_to_patches(video, 2, 2), (2, 3, 4), 2, 2), video)
    patches = spectrogram_to_patches(spectrogram, 4, 3)
    assert torch.equal(patches_to_spectrogram(patches, (2, 4), 4, 3), spectrogram)


def test_normalised_patches_have_mean_0_and_unbiased_variance_1():
    patches = normalize_patches(3.0 + 5.0 * torch.randn(2, 7, 64))
    torch.testing.assert_close(patches.mean(dim=-1), torch.zeros(2, 7), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.var(dim=-1), torch.ones(2, 7), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.3976, 1e3])
def test_a_constant_patch_becomes_zero(value):
    patches = normalize_patches(torch.full((1, 2, 64), value))
    torch.testing.assert_close(patches, torch.zeros(1, 2, 64), atol=1e-6 * value**2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_normalising_is_exact_under_autocast(dtype):
    # Half of these patches have a deviation of a thousandth of their mean.
    patches = 5.0 + torch.tensor([1.0, 5e-3])[:, None, None] * torch.randn(2, 7, 64)
    mean = patches.double().mean(dim=-1, keepdim=True)
    expected = (patches - mean) / (patches.double().var(dim=-1, keepdim=True) + 1e-6).sqrt()
    with torch.autocast("cpu", dtype=dtype):
        normalized = normalize_patches(patches)
    torch.testing.assert_close(normalized, expected.float(), atol=2e-4, rtol=0)


def test_denormalising_undoes_normalising():
    patches = torch.randn(2, 7, 64)
    back = denormalize_patches(normalize_patches(patches), patch_statistics(patches))
    torch.testing.assert_close(back, patches)


def test_a_clip_that_is_not_a_multiple_of_the_patch_is_refused():
    with pytest.raises(ValueError, match=r"clip size \(9, 8\) must be a multiple of patch size"):
        patch_grid((9, 8), (2, 2))


def test_errors_of_predicted_patches_are_those_of_normalized_pixels():
    clip = 2.0 + 3.0 * torch.randn(2, 3, 4, 16, 16)
    patches = video_to_patches(clip, 2, 8)
    normalized = (patches - patches.mean(-1, keepdim=True)) / patches.std(-1, keepdim=True)
    predicted, positions = torch.randn_like(patches), torch.tensor([[5, 0, 3], [1, 2, 7]])
    expected = (predicted - normalized).square().mean(dim=-1).gather(1, positions)
    errors = patch_errors(take_tokens(predicted, positions), positions, clip, (2, 8, 8))
    torch.testing.assert_close(errors, expected)
