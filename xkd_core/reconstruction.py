"""A student's reconstruction of a masked clip as pixels or mel bins, for reports.

A decoder predicts normalized patches, so the mean and the deviation of each patch are taken from
the input. Visible patches are copied from the input.

Paper: MAE, arXiv:2111.06377.
"""

import torch

from xkd_core.decoder import Decoder
from xkd_core.encoders import Encoder
from xkd_core.masking import random_mask
from xkd_core.patches import (
    denormalize_patches,
    patch_grid,
    patch_statistics,
    patches_to_spectrogram,
    patches_to_video,
    to_patches,
)
from xkd_core.shapes import Float, Tensor
from xkd_core.xkd import XKD


def reconstruct_video(
    model: XKD, video: Float[Tensor, "B 3 T H W"], mask_noise: Float[Tensor, "B N"]
) -> Float[Tensor, "B 3 T H W"]:
    """Masks videos as in training and reconstructs the hidden patches."""
    return _reconstruct(
        model.video_student, model.video_decoder, video, mask_noise, model.num_visible_video
    )


def reconstruct_audio(
    model: XKD, spectrogram: Float[Tensor, "B 1 M T"], mask_noise: Float[Tensor, "B N"]
) -> Float[Tensor, "B 1 M T"]:
    """Masks spectrograms as in training and reconstructs the hidden patches."""
    return _reconstruct(
        model.audio_student, model.audio_decoder, spectrogram, mask_noise, model.num_visible_audio
    )


def _reconstruct(
    encoder: Encoder,
    decoder: Decoder,
    clip: Float[Tensor, "B C *size"],
    mask_noise: Float[Tensor, "B N"],
    num_visible: int,
) -> Float[Tensor, "B C *size"]:
    with torch.no_grad():
        mask = random_mask(mask_noise, num_visible)
        patches = to_patches(clip, encoder.patch_size).float()
        predicted = decoder(encoder(clip, mask.keep), mask.restore)
        predicted = denormalize_patches(predicted, patch_statistics(patches))
        hidden = mask.hidden.unsqueeze(-1)
        reconstructed = torch.where(hidden, predicted, patches)
    return _from_patches(reconstructed, tuple(clip.shape[2:]), encoder.patch_size)


def _from_patches(
    patches: Float[Tensor, "B N P"], size: tuple[int, ...], patch_size: tuple[int, ...]
) -> Float[Tensor, "B C *size"]:
    grid = patch_grid(size, patch_size)
    if len(patch_size) == 3:
        return patches_to_video(patches, (grid[0], grid[1], grid[2]), patch_size[0], patch_size[1])
    return patches_to_spectrogram(patches, (grid[0], grid[1]), patch_size[0], patch_size[1])
