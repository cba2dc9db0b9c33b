"""Random changes of spectrograms while an encoder of sounds is fine-tuned.

All random numbers come from a generator on the CPU.

Source: SpecAugment, arXiv:1904.08779 (warping and masks); BYOL-A, arXiv:2103.06695 (crops).
"""

import torch
import torch.nn.functional as F

from xkd_core.shapes import Float, Tensor
from xkd_core.views.parameters import AudioViewParameters
from xkd_core.views.views import crop_spectrogram


def warp_time(
    spectrogram: Float[Tensor, "B 1 M T"], max_frames: int, generator: torch.Generator
) -> Float[Tensor, "B 1 M T"]:
    """Moves a random frame of each spectrogram by less than `max_frames`, and stretches both sides.

    |----- first -----|-- second --|     before
    |-- first --|----- second -----|     after: as many frames as before
    """
    T = spectrogram.shape[-1]
    most = min(max_frames, (T - 1) // 2)
    if most < 2:
        return spectrogram
    warped = []
    for clip in spectrogram:
        frame = int(torch.randint(most, T - most + 1, (1,), generator=generator))
        moved = frame + int(torch.randint(1 - most, most, (1,), generator=generator))
        sides = (clip[..., :frame], moved), (clip[..., frame:], T - moved)
        warped.append(
            torch.cat(
                [
                    F.interpolate(side, size, mode="linear", align_corners=True)
                    for side, size in sides
                ],
                dim=-1,
            )
        )
    return torch.stack(warped)


def random_crops(
    spectrogram: Float[Tensor, "B 1 M T"], shares: tuple[float, float], generator: torch.Generator
) -> Float[Tensor, "B 1 M T"]:
    """Crops each spectrogram at random on a canvas of zeros, and resizes the crop to its size.

    Args:
        spectrogram: Log-mel spectrograms.
        shares: Range of the height and of the width of a crop, as shares of the spectrogram's.
        generator: On the CPU.
    """
    low, high = shares
    size, position = torch.rand((2, len(spectrogram), 2), generator=generator)
    view = AudioViewParameters(
        start=torch.zeros(len(spectrogram), dtype=torch.long),
        volume=torch.ones(len(spectrogram)),
        crop_size=low + size * (high - low),
        crop_position=position,
    )
    return crop_spectrogram(spectrogram[:, 0], view).unsqueeze(1)


def mask_spectrogram(
    spectrogram: Float[Tensor, "B 1 M T"],
    *,
    num_masks: int,
    max_bins: int,
    max_frames: int,
    generator: torch.Generator,
) -> Float[Tensor, "B 1 M T"]:
    """Fills bands of mel bins and of frames with the mean of each spectrogram."""
    masked = spectrogram.clone()
    means = spectrogram.mean(dim=(1, 2, 3))
    for clip, mean in enumerate(means):
        for axis, most in ((1, max_bins), (2, max_frames)):
            size = masked.shape[axis + 1]
            for _ in range(num_masks):
                length = int(torch.randint(0, min(most, size), (1,), generator=generator))
                start = int(torch.randint(0, size - length + 1, (1,), generator=generator))
                masked[clip].narrow(axis, start, length).fill_(mean)
    return masked
