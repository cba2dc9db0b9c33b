"""Resizing of learned position tables for clips of other sizes.

Each axis is resized by a product with a small matrix: PyTorch's interpolation of the identity. The
result equals `F.interpolate`, but the gradient of the table is a matrix product, which is
deterministic on every device.

    4 positions to 2, linear:   [.5 .5 0  0 ]     new position 0 is the mean of positions 0 and 1
                                [0  0  .5 .5]

Paper: XKD, arXiv:2211.13929.
"""

from typing import Literal

import torch
import torch.nn.functional as F

from xkd_core.shapes import Float, Tensor

PositionInterpolation = Literal["scale_factor", "exact"]


def resize_positions(
    table: Float[Tensor, "N D"],
    grid: tuple[int, ...],
    new_grid: tuple[int, ...],
    method: PositionInterpolation,
) -> Float[Tensor, "N_new D"]:
    """Resizes the table of a video (three axes, linear) or of a spectrogram (two axes, bicubic).

    To resize n positions to m, `exact` interpolates by the factor m / n, and `scale_factor` by
    (m + 0.1) / n, with which published weights were trained.
    """
    kernel: Literal["linear", "bicubic"] = "linear" if len(grid) == 3 else "bicubic"
    resized = table.float().reshape(*grid, -1)
    with torch.autocast(table.device.type, enabled=False):
        for axis, (length, new_length) in enumerate(zip(grid, new_grid, strict=True)):
            if length != new_length or len(grid) == 3:
                matrix = _resize_matrix(length, new_length, kernel, method, table.device)
                resized = torch.tensordot(resized, matrix, dims=([axis], [1])).movedim(-1, axis)
    return resized.reshape(-1, table.shape[-1])


def _resize_matrix(
    length: int,
    new_length: int,
    kernel: Literal["linear", "bicubic"],
    method: PositionInterpolation,
    device: torch.device,
) -> Float[Tensor, "new old"]:
    identity = torch.eye(length, dtype=torch.float32, device=device)[
        :, None, None, :
    ]  # one signal per position
    mode = "bilinear" if kernel == "linear" else "bicubic"  # over one row: along the axis alone
    if method == "exact":
        resized = F.interpolate(identity, size=(1, new_length), mode=mode)
    else:
        factor = (new_length + 0.1) / length
        resized = F.interpolate(identity, scale_factor=(1.0, factor), mode=mode)
    return resized[:, 0, 0, :].T
