"""Crops, resizes and blurs as matrices: one matrix per clip and axis, applied by batched products.

Each function here builds matrices of shape (B, output, input) from per-clip parameters, so clips
with different crops share one product on any device. The values are those of the usual libraries:
`antialias_matrix` is PIL's (and torchvision's antialiased) bilinear filter, `bicubic_matrix` is
`F.interpolate(mode="bicubic", align_corners=True)`, `blur_matrix` is torchvision's Gaussian blur.
"""

import torch

from xkd_core.shapes import Bool, Float, Int, Tensor

_BICUBIC_A = -0.75


def antialias_matrix(
    start: Int[Tensor, " B"],
    length: Int[Tensor, " B"],
    flip: Bool[Tensor, " B"],
    *,
    input_size: int,
    output_size: int,
) -> Float[Tensor, "B output input"]:
    """Cuts `length` pixels from `start` and resizes them by a triangle filter, then flips."""
    output = torch.arange(output_size, device=start.device)
    output = torch.where(flip.unsqueeze(1), output_size - 1 - output, output)  # B output
    scale = (length / output_size).unsqueeze(1)
    center = (output + 0.5) * scale
    # Pixels of the crop are counted from its first; the filter widens only when it shrinks.
    pixel = torch.arange(input_size, device=start.device) - start.unsqueeze(1)  # B input
    distance = (pixel.unsqueeze(1) + 0.5 - center.unsqueeze(2)).abs()
    weights = (1.0 - distance / scale.clamp(min=1.0).unsqueeze(2)).clamp(min=0.0)
    inside = (pixel >= 0) & (pixel < length.unsqueeze(1))
    weights = weights * inside.unsqueeze(1)
    return weights / weights.sum(dim=2, keepdim=True)


def bicubic_matrix(
    start: Int[Tensor, " B"], length: Int[Tensor, " B"], *, input_size: int, output_size: int
) -> Float[Tensor, "B output input"]:
    """Cuts `length` values from `start` and resizes them so that first and last stay in place."""
    step = (length - 1) / max(output_size - 1, 1)
    position = torch.arange(output_size, device=start.device) * step.unsqueeze(1)  # B output
    first = position.floor()
    taps = torch.arange(-1, 3, device=start.device)
    index = first.long().unsqueeze(2) + taps  # B output 4
    weights = _cubic((position - first).unsqueeze(2) - taps)
    # Taps beyond the crop fall on its first and last values.
    index = index.clamp(min=0).minimum((length - 1).view(-1, 1, 1)) + start.view(-1, 1, 1)
    matrix = weights.new_zeros(len(start), output_size, input_size)
    return matrix.scatter_add_(2, index, weights)


def _cubic(offset: Tensor) -> Tensor:
    x = offset.abs()
    near = ((_BICUBIC_A + 2.0) * x - (_BICUBIC_A + 3.0)) * x * x + 1.0
    far = _BICUBIC_A * (((x - 5.0) * x + 8.0) * x - 4.0)
    return torch.where(x <= 1.0, near, far)


def blur_matrix(
    sigma: Float[Tensor, "*B"], *, size: int, radius: int
) -> Float[Tensor, "*B size size"]:
    """Gaussian blur with `2 * radius + 1` taps and reflected edges; none where sigma is 0."""
    taps = torch.arange(-radius, radius + 1, device=sigma.device)
    # At a vanishing sigma the middle tap alone is left.
    weights = torch.exp(-0.5 * (taps / sigma.clamp(min=1e-4).unsqueeze(-1)) ** 2)
    weights = weights / weights.sum(dim=-1, keepdim=True)  # *B taps
    position = torch.arange(size, device=sigma.device).unsqueeze(1) + taps  # size taps
    position = (size - 1) - ((size - 1) - position.abs()).abs()
    matrix = weights.new_zeros(*sigma.shape, size, size)
    return matrix.scatter_add_(
        -1,
        position.expand(*sigma.shape, -1, -1),
        weights.unsqueeze(-2).expand(*sigma.shape, size, -1),
    )
