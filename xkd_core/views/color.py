"""Colour jitter with other factors and another order of operations for each clip.

Pixels are in [0, 1], and every function changes them in place: jitter costs more than any other
part of a view, and memory traffic is what it costs. The formulas are torchvision's, except that the
hue is turned without building the whole HSV image.
"""

import torch

from xkd_core.shapes import Bool, Float, Int, Tensor

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in gray, as in torchvision."""


def jitter_(
    pixels: Float[Tensor, "B 3 H T W"],
    factors: Float[Tensor, "B 4"],
    order: Int[Tensor, "B 4"],
) -> None:
    """Applies brightness, contrast, saturation and hue to each clip, in the clip's own order.

    `factors` are those of brightness, contrast and saturation, then the turn of the hue; `order` is
    which of the four comes first, second, third and last. Both are on the CPU, where it is decided
    what is computed.
    """
    on_device = factors.float().to(pixels.device)
    operations = (brightness_, contrast_, saturation_, turn_hue_)
    for turn in zip(*order.tolist(), strict=True):
        for number, operation in enumerate(operations):
            chosen = [clip for clip, its_number in enumerate(turn) if its_number == number]
            if len(chosen) == len(turn):
                operation(pixels, on_device[:, number])
            elif chosen:
                rows = torch.tensor(chosen, device=pixels.device)
                some = pixels[rows]
                operation(some, on_device[rows, number])
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
    shift = pixels.new_tensor((5.0, 3.0, 1.0)).view(3, 1, 1, 1) / 6.0 + 1.0
    torch.add(hue.unsqueeze(1), shift + _per_clip(turn), out=pixels)
    pixels.frac_().sub_(1.0 / 3.0).abs_().clamp_(1.0 / 6.0, 1.0 / 3.0)
    base = value.sub_(chroma, alpha=2.0)
    torch.addcmul(base.unsqueeze(1), pixels, slope.unsqueeze(1), out=pixels)


def gray(pixels: Float[Tensor, "B 3 H T W"]) -> Float[Tensor, "B 1 H T W"]:
    """Weighs the channels as the eye does."""
    red, green, blue = pixels.unbind(dim=1)
    luma = red * LUMA[0]
    return luma.add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(1)


def make_gray_(pixels: Float[Tensor, "B 3 H T W"], chosen: Bool[Tensor, " B"]) -> None:
    """Removes the colour of the chosen clips; `chosen` is on the CPU."""
    rows = chosen.nonzero().squeeze(1).to(pixels.device)
    if len(rows):
        pixels[rows] = gray(pixels[rows]).expand(-1, 3, -1, -1, -1)


def _per_clip(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1, 1)


def _blend_(pixels: Tensor, other: Tensor, factor: Tensor) -> None:
    pixels.mul_(factor).add_(other * (1.0 - factor)).clamp_(0.0, 1.0)
