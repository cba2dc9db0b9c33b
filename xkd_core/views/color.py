"""Colour jitter with other factors and another order of operations for each clip.

Pixels are in [0, 1], and every function changes them in place: jitter costs more than any other
part of a view, and memory traffic is what it costs. The formulas are torchvision's, except that the
hue is turned without building the whole HSV image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from xkd_core.shapes import Float, Int, Tensor

_LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in gray, as in torchvision."""


class Change(NamedTuple):
    """An operation of the jitter and the clips that it changes next."""

    operation: int
    """0 brightness, 1 contrast, 2 saturation, 3 hue."""
    rows: Int[Tensor, " changed"]


def jitter_changes(order: Int[Tensor, "B 4"]) -> tuple[Change, ...]:
    """Groups clips whose next operation is the same; `order` is on the CPU.

    Two clips, one with the order 0 1 2 3 and one with 0 2 1 3, take six changes:

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
        pixels: Changed in place.
        factors: Factors of brightness, contrast and saturation, then the turn of the hue.
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
    """Moves pixels from (towards) the mean gray of their frame."""
    mean = gray(pixels).mean(dim=(1, 2, 4), keepdim=True)
    _blend_(pixels, mean, _per_clip(factor))


def saturation_(pixels: Float[Tensor, "B 3 H T W"], factor: Float[Tensor, " B"]) -> None:
    """Moves pixels from (towards) their gray."""
    _blend_(pixels, gray(pixels), _per_clip(factor))


def turn_hue_(pixels: Float[Tensor, "B 3 H T W"], turn: Float[Tensor, " B"]) -> None:
    """Turns the hue by a share of the circle; value and saturation of HSV stay.

    With V the largest channel, C the largest less the smallest and h the hue as a share of the
    circle, channel n (5, 3, 1 for red, green, blue) is V - C clamp(2 - |6x - 2|, 0, 1) for x the
    fractional part of h + n / 6; that is V - 2C + 6C clamp(|x - 1/3|, 1/6, 1/3).
    """
    red, green, blue = pixels.unbind(dim=1)
    value = torch.maximum(red, green).maximum(blue)
    chroma = value - torch.minimum(red, green).minimum(blue)
    # 6 C h, by the largest channel; masks of 0 and 1 are many times faster than `where`.
    hue = (green - blue).lerp_((blue - red).add_(chroma, alpha=2.0), value.clone().eq_(green))
    hue.lerp_((red - green).add_(chroma, alpha=4.0), value.clone().eq_(blue))
    slope = 6.0 * chroma
    hue.div_(slope.clamp(min=1e-12))
    # One turn more than n / 6, so that the fractional part is taken of a positive number.
    channel = torch.arange(5, 0, -2, dtype=pixels.dtype, device=pixels.device)  # 5, 3, 1
    shift = channel.view(3, 1, 1, 1) / 6.0 + 1.0
    torch.add(hue.unsqueeze(1), shift + _per_clip(turn), out=pixels)
    pixels.frac_().sub_(1.0 / 3.0).abs_().clamp_(1.0 / 6.0, 1.0 / 3.0)
    base = value.sub_(chroma, alpha=2.0)
    torch.addcmul(base.unsqueeze(1), pixels, slope.unsqueeze(1), out=pixels)


def gray(pixels: Float[Tensor, "B 3 H T W"]) -> Float[Tensor, "B 1 H T W"]:
    """Weighs the channels as the eye does."""
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
