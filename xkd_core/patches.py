"""Clips to patches and back, and the normalisation of the patches that a decoder must predict.

A video is cut into tubelets (time, height, width) and a spectrogram into tiles (frequency, time);
both are listed row-major. Inside a patch the channel comes last. Changing either order breaks
published weights.

Paper: XKD, arXiv:2211.13929; MAE, arXiv:2111.06377 (normalised targets).
"""

from typing import NamedTuple

import torch
from einops import rearrange

from xkd_core.shapes import Float, Tensor

_VARIANCE_EPS = 1e-6


class PatchStatistics(NamedTuple):
    """Mean and standard deviation of each patch of the input."""

    mean: Float[Tensor, "B N 1"]
    std: Float[Tensor, "B N 1"]


def patch_grid(clip_size: tuple[int, ...], patch_size: tuple[int, ...]) -> tuple[int, ...]:
    """Number of patches along each axis of a clip.

    Raises:
        ValueError: If an axis of the clip is not a multiple of the patch.
    """
    if len(clip_size) != len(patch_size) or any(
        length % patch for length, patch in zip(clip_size, patch_size, strict=True)
    ):
        raise ValueError(f"clip size {clip_size} must be a multiple of patch size {patch_size}")
    return tuple(length // patch for length, patch in zip(clip_size, patch_size, strict=True))


def to_patches(
    clip: Float[Tensor, "B C *size"], patch_size: tuple[int, ...]
) -> Float[Tensor, "B N P"]:
    """Patches of a video (three patch sides) or of a spectrogram (two)."""
    if len(patch_size) == 3:
        return video_to_patches(clip, patch_size[0], patch_size[1])
    return spectrogram_to_patches(clip, patch_size[0], patch_size[1])


def video_to_patches(
    video: Float[Tensor, "B C T H W"], tubelet_size: int, patch_size: int
) -> Float[Tensor, "B N P"]:
    """Tubelets in the order (time, row, column)."""
    return rearrange(
        video,
        "b c (t pt) (h ph) (w pw) -> b (t h w) (pt ph pw c)",
        pt=tubelet_size,
        ph=patch_size,
        pw=patch_size,
    )


def patches_to_video(
    patches: Float[Tensor, "B N P"], grid: tuple[int, int, int], tubelet_size: int, patch_size: int
) -> Float[Tensor, "B C T H W"]:
    """Undoes `video_to_patches`."""
    return rearrange(
        patches,
        "b (t h w) (pt ph pw c) -> b c (t pt) (h ph) (w pw)",
        t=grid[0],
        h=grid[1],
        w=grid[2],
        pt=tubelet_size,
        ph=patch_size,
        pw=patch_size,
    )


def spectrogram_to_patches(
    spectrogram: Float[Tensor, "B C M T"], patch_bins: int, patch_frames: int
) -> Float[Tensor, "B N P"]:
    """Tiles in the order (frequency, time)."""
    return rearrange(
        spectrogram, "b c (m pm) (t pt) -> b (m t) (pm pt c)", pm=patch_bins, pt=patch_frames
    )


def patches_to_spectrogram(
    patches: Float[Tensor, "B N P"], grid: tuple[int, int], patch_bins: int, patch_frames: int
) -> Float[Tensor, "B C M T"]:
    """Undoes `spectrogram_to_patches`."""
    return rearrange(
        patches,
        "b (m t) (pm pt c) -> b c (m pm) (t pt)",
        m=grid[0],
        t=grid[1],
        pm=patch_bins,
        pt=patch_frames,
    )


def patch_statistics(patches: Float[Tensor, "B N P"]) -> PatchStatistics:
    """What `normalize_patches` removes; the variance is the unbiased one."""
    variance, mean = torch.var_mean(patches.float(), dim=-1, keepdim=True)
    return PatchStatistics(mean, (variance + _VARIANCE_EPS).sqrt())


def normalize_patches(patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N P"]:
    """Targets of the reconstruction: each patch by its own mean and variance, in float32."""
    statistics = patch_statistics(patches)
    return (patches.float() - statistics.mean) / statistics.std


def denormalize_patches(
    patches: Float[Tensor, "B N P"], statistics: PatchStatistics
) -> Float[Tensor, "B N P"]:
    """Undoes `normalize_patches`, given the statistics of the input."""
    return patches.float() * statistics.std + statistics.mean
