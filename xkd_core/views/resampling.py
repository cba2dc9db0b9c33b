"""Crops, resizes and blurs as matrices, one per clip and axis, applied by batched products.

Functions build matrices of shape (B, output, input) from per-clip parameters, so that clips with
different crops share one product on any device. `antialias_matrix` equals PIL's (and torchvision's
antialiased) bilinear filter, `bicubic_matrix` `F.interpolate(mode="bicubic", align_corners=True)`,
and `blur_matrix` torchvision's Gaussian blur.

    cut pixels 2 to 5 of 8 and resize them to 2, with a triangle of width 4:

        pixel      0    1    2    3    4    5    6    7
        output 0 [ 0    0   .43  .43  .14   0    0    0 ]
        output 1 [ 0    0    0   .14  .43  .43   0    0 ]
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
    """Crops `length` pixels from `start`, resizes them by a triangle filter, then flips."""
    output = torch.arange(output_size, device=start.device)
    output = torch.where(flip.unsqueeze(1), output_size - 1 - output, output)  # B output
    # In float32, whatever torch's default is.
    scale = (length.float() / output_size).unsqueeze(1)
    center = (output.float() + 0.5) * scale
    # Pixels count from the start of the crop. The filter widens only for shrinking.
    pixel = torch.arange(input_size, device=start.device) - start.unsqueeze(1)  # B input
    distance = (pixel.unsqueeze(1).float() + 0.5 - center.unsqueeze(2)).abs()
    weights = (1.0 - distance / scale.clamp(min=1.0).unsqueeze(2)).clamp(min=0.0)
    inside = (pixel >= 0) & (pixel < length.unsqueeze(1))
    weights = weights * inside.unsqueeze(1)
    return weights / weights.sum(dim=2, keepdim=True)


def bicubic_matrix(
    start: Int[Tensor, " B"], length: Int[Tensor, " B"], *, input_size: int, output_size: int
) -> Float[Tensor, "B output input"]:
    """Crops `length` values from `start`, resizes them with first and last values aligned."""
    step = (length - 1).float() / max(output_size - 1, 1)
    position = torch.arange(output_size, device=start.device) * step.unsqueeze(1)  # B output
    first = position.floor()
    taps = torch.arange(-1, 3, device=start.device)
    index = first.long().unsqueeze(2) + taps  # B output 4
    weights = _cubic((position - first).unsqueeze(2) - taps)
    # Taps outside the crop use its first and last values.
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
    """Gaussian blur with `2 * radius + 1` taps and reflected edges; the identity at sigma 0."""
    taps = torch.arange(-radius, radius + 1, device=sigma.device)
    # For a vanishing sigma only the middle tap remains.
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
