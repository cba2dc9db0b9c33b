"""Color jitter with factors and an order of operations of its own for each clip.

Pixels are in [0, 1]. Functions modify them in place, because jitter is the most expensive part of a
view and bound by memory bandwidth. The formulas are torchvision's, except that the hue is changed
without building the HSV image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from xkd_core.shapes import Float, Int, Tensor

_LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue, as in torchvision."""


class Change(NamedTuple):
    """An operation of the jitter and the clips to apply it to."""

    operation: int
    """0 brightness, 1 contrast, 2 saturation, 3 hue."""
    rows: Int[Tensor, " changed"]


def jitter_changes(order: Int[Tensor, "B 4"]) -> tuple[Change, ...]:
    """Groups clips whose next operation is the same. `order` must be on the CPU.

    Two clips with the orders 0 1 2 3 and 0 2 1 3 need six changes:

        operation   0     1    2    2    1    3
        rows        0 1   0    1    0    1    0 1
    """
    changes = []
    for turn in zip(*order.tolist(), strict=True):
        for operation in sorted(set(turn)):
            rows = [clip for clip, its_operation in enumerate(turn) if its_operation == operation]
            changes.append(Change(operation, torch.tensor(rows)))
    return tuple(changes)


def jitter_(
    pixels: Float[Tensor, "B 3 H T W"],
    factors: Float[Tensor, "B 4"],
    changes: Sequence[Change],
) -> None:
    """Applies brightness, contrast, saturation and hue to each clip, in the clip's own order.

    Args:
        pixels: Modified in place.
        factors: Factors of brightness, contrast and saturation, then the shift of the hue.
        changes: From `jitter_changes`, with rows on the device of the pixels.
    """
    operations = (brightness_, contrast_, saturation_, turn_hue_)
    for number, rows in changes:
        if len(rows) == len(pixels):
            operations[number](pixels, factors[:, number])
        else:
            some = pixels[rows]
            operations[number](some, factors[rows, number])
            pixels[rows] = some


def brightness_(pixels: Float[Tensor, "B 3 H T W"], factor: Float[Tensor, " B"]) -> None:
    """Multiplies all channels."""
    pixels.mul_(_per_clip(factor)).clamp_(max=1.0)


def contrast_(pixels: Float[Tensor, "B 3 H T W"], factor: Float[Tensor, " B"]) -> None:
    """Blends pixels with the mean gray of their frame."""
    mean = gray(pixels).mean(dim=(1, 2, 4), keepdim=True)
    _blend_(pixels, mean, _per_clip(factor))


def saturation_(pixels: Float[Tensor, "B 3 H T W"], factor: Float[Tensor, " B"]) -> None:
    """Blends pixels with their gray."""
    _blend_(pixels, gray(pixels), _per_clip(factor))


def turn_hue_(pixels: Float[Tensor, "B 3 H T W"], turn: Float[Tensor, " B"]) -> None:
    """Shifts the hue by a share of the circle and keeps value and saturation of HSV.

    With V the largest channel, C the largest minus the smallest, h the hue in [0, 1), and n = 5, 3
    and 1 for red, green and blue:

        x = frac(h + n / 6)
        channel n = V - C clamp(2 - |6x - 2|, 0, 1) = V - 2C + 6C clamp(|x - 1/3|, 1/6, 1/3)

    Pure red, V = C = 1 and h = 0, turned by 1/3: x = 1/6, 5/6, 1/2 gives 0, 1, 0, pure green.
    """
    red, green, blue = pixels.unbind(dim=1)
    value = torch.maximum(red, green).maximum(blue)
    chroma = value - torch.minimum(red, green).minimum(blue)
    # 6 C h, depending on the largest channel. Masks of 0 and 1 are much faster than `where`.
    hue = (green - blue).lerp_((blue - red).add_(chroma, alpha=2.0), value.clone().eq_(green))
    hue.lerp_((red - green).add_(chroma, alpha=4.0), value.clone().eq_(blue))
    slope = 6.0 * chroma
    hue.div_(slope.clamp(min=1e-12))
    # n / 6 plus one full turn, so that frac sees positive numbers.
    channel = torch.arange(5, 0, -2, dtype=pixels.dtype, device=pixels.device)  # 5, 3, 1
    shift = channel.view(3, 1, 1, 1) / 6.0 + 1.0
    torch.add(hue.unsqueeze(1), shift + _per_clip(turn), out=pixels)
    pixels.frac_().sub_(1.0 / 3.0).abs_().clamp_(1.0 / 6.0, 1.0 / 3.0)
    base = value.sub_(chroma, alpha=2.0)
    torch.addcmul(base.unsqueeze(1), pixels, slope.unsqueeze(1), out=pixels)


def gray(pixels: Float[Tensor, "B 3 H T W"]) -> Float[Tensor, "B 1 H T W"]:
    """Computes the luma of each pixel."""
    red, green, blue = pixels.unbind(dim=1)
    luma = red * _LUMA[0]
    return luma.add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze(1)


def make_gray_(pixels: Float[Tensor, "B 3 H T W"], rows: Int[Tensor, " chosen"]) -> None:
    """Removes the color of the clips at `rows`."""
    if len(rows):
        pixels[rows] = gray(pixels[rows]).expand(-1, 3, -1, -1, -1)


def _per_clip(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1, 1)


def _blend_(pixels: Tensor, other: Tensor, factor: Tensor) -> None:
    pixels.mul_(factor).add_(other * (1.0 - factor)).clamp_(0.0, 1.0)
