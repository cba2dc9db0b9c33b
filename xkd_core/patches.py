"""Conversion of clips to patches and back, and normalization of the patches to predict.

A video is cut into tubelets (time, height, width), a spectrogram into tiles (frequency, time). Both
are in row-major order, with the channel last inside a patch. Published weights depend on both
orders.

    spectrogram of 4 x 4 in tiles of 2 x 2       patches
        a b | e f
        c d | g h                                0: a b c d    1: e f g h
        ----+----
        i j | m n                                2: i j k l    3: m n o p
        k l | o p

Paper: XKD, arXiv:2211.13929; MAE, arXiv:2111.06377 (normalized targets).
"""

from typing import NamedTuple

import torch
from einops import rearrange

from xkd_core.masking import take_tokens
from xkd_core.shapes import Float, Int, Tensor

_VARIANCE_EPS = 1e-6


class PatchStatistics(NamedTuple):
    """Mean and standard deviation of each patch."""

    mean: Float[Tensor, "B N 1"]
    std: Float[Tensor, "B N 1"]


def patch_grid(clip_size: tuple[int, ...], patch_size: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the number of patches along each axis of a clip.

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
    """Cuts a video (three patch sides) or a spectrogram (two) into patches."""
    if len(patch_size) == 3:
        return video_to_patches(clip, patch_size[0], patch_size[1])
    return spectrogram_to_patches(clip, patch_size[0], patch_size[1])


def video_to_patches(
    video: Float[Tensor, "B C T H W"], tubelet_size: int, patch_size: int
) -> Float[Tensor, "B N P"]:
    """Cuts a video into tubelets, in the order (time, row, column)."""
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
    """Inverts `video_to_patches`."""
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
    """Cuts a spectrogram into tiles, in the order (frequency, time)."""
    return rearrange(
        spectrogram, "b c (m pm) (t pt) -> b (m t) (pm pt c)", pm=patch_bins, pt=patch_frames
    )


def patches_to_spectrogram(
    patches: Float[Tensor, "B N P"], grid: tuple[int, int], patch_bins: int, patch_frames: int
) -> Float[Tensor, "B C M T"]:
    """Inverts `spectrogram_to_patches`."""
    return rearrange(
        patches,
        "b (m t) (pm pt c) -> b c (m pm) (t pt)",
        m=grid[0],
        t=grid[1],
        pm=patch_bins,
        pt=patch_frames,
    )


def patch_statistics(patches: Float[Tensor, "B N P"]) -> PatchStatistics:
    """Computes each patch's mean and standard deviation, from the unbiased variance."""
    variance, mean = torch.var_mean(patches.float(), dim=-1, keepdim=True)
    return PatchStatistics(mean, (variance + _VARIANCE_EPS).sqrt())


def normalize_patches(patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B N P"]:
    """Normalizes each patch by its own mean and variance in float32, as a target."""
    statistics = patch_statistics(patches)
    return (patches.float() - statistics.mean) / statistics.std


def patch_errors(
    predicted: Float[Tensor, "B N_predicted P"],
    positions: Int[Tensor, "B N_predicted"],
    clip: Float[Tensor, "B C *size"],
    patch_size: tuple[int, ...],
) -> Float[Tensor, "B N_predicted"]:
    """Computes the mean squared error of predicted normalized patches, patch by patch."""
    target = normalize_patches(take_tokens(to_patches(clip, patch_size), positions))
    return (predicted.float() - target).square().mean(dim=-1)


def denormalize_patches(
    patches: Float[Tensor, "B N P"], statistics: PatchStatistics
) -> Float[Tensor, "B N P"]:
    """Inverts `normalize_patches`, given the statistics of the input."""
    return patches.float() * statistics.std + statistics.mean
