"""Spectrograms are warped, masked and cropped at random, each by itself."""

import torch

from xkd_core.classifiers.spectrograms import mask_spectrogram, random_crops, warp_time


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_masks_are_bands_of_the_mean():
    spectrogram = torch.rand((8, 1, 20, 40), generator=generator())
    masked = mask_spectrogram(
        spectrogram, num_masks=2, max_bins=5, max_frames=9, generator=generator()
    )
    means = spectrogram.mean(dim=(1, 2, 3))
    for clip in range(8):
        there = masked[clip, 0] != spectrogram[clip, 0]
        assert torch.allclose(masked[clip, 0][there], means[clip])
        bins, frames = there.all(dim=1).sum(), there.all(dim=0).sum()
        assert bins <= 8
        assert frames <= 16
        assert there.sum() == bins * 40 + frames * 20 - bins * frames


def ramps(num_clips, num_frames=60):
    """Spectrograms whose values are the number of the frame."""
    return torch.arange(num_frames).float().expand(num_clips, 1, 4, num_frames)


def test_warping_moves_frames_in_time_and_keeps_both_ends():
    warped = warp_time(ramps(50), 20, generator())
    assert warped.shape == (50, 1, 4, 60)
    assert (warped[..., 0] == 0).all()
    assert ((warped[..., -1] - 59).abs() < 1e-3).all()
    assert (warped.diff(dim=-1) >= 0).all()  # time does not run back
    assert (warped == warped[:, :, :1]).all()  # all mel bins alike
    moved = (warped - ramps(50)).abs().amax(dim=(1, 2, 3))
    assert moved.max() < 20
    assert (moved > 2).sum() > 30
    assert moved.unique().numel() > 10  # each clip by itself


def test_too_few_frames_are_not_warped():
    short = ramps(3, 4)
    assert warp_time(short, 20, generator()) is short
    assert warp_time(ramps(3), 0, generator()).equal(ramps(3))
    assert warp_time(ramps(3, 7), 20, generator()).shape == (3, 1, 4, 7)


def test_a_crop_of_the_whole_height_keeps_bins_and_a_small_one_enlarges():
    spectrogram = torch.rand((6, 1, 20, 40), generator=generator())
    cropped = random_crops(spectrogram, (0.6, 1.5), generator())
    assert cropped.shape == spectrogram.shape
    assert not cropped.isclose(spectrogram).all(dim=(1, 2, 3)).any()
    steps = random_crops(ramps(30), (0.5, 0.5001), generator()).diff(dim=-1)
    inside = steps[(steps.amin(dim=(1, 2, 3)) > 0) & (steps.amax(dim=(1, 2, 3)) < 1)]
    assert len(inside) > 3  # crops that do not reach over the edge
    assert (inside.mean(dim=-1) - 29 / 59).abs().max() < 1e-3
