"""One video view of each clip: crop, resize, flip, jitter, gray, blur, normalize.

A view is a function of its clip and its parameters; nothing is drawn here. Augmentations of
torchvision v2 and kornia draw from global state or once a batch, so they cannot be used. Pixels
have the shape (B, 3, H, T, W), so that resizing or blurring an axis is one batched matrix product.
Colors change after the resize, when there are fewest pixels.

    frames (T, H, W, 3) uint8 --> rows @ pixels @ columns --> jitter, gray, blur --> (3, T, H, W)

Paper: XKD, section 4; the formulas are torchvision's.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from xkd_core.config import Range
from xkd_core.shapes import Bool, Float, Int, Tensor, UInt8
from xkd_core.views.color import Change, jitter_, jitter_changes, make_gray_
from xkd_core.views.parameters import VideoViewParameters, integer_offset
from xkd_core.views.resampling import antialias_matrix, blur_matrix

_LARGEST_PIXEL = 255.0
VIDEO_MEAN = (0.485, 0.456, 0.406)
VIDEO_STD = (0.229, 0.224, 0.225)
CPU_CHUNK_CLIPS = 1
"""Clips that a CPU processes at once; its cache holds little more than one."""
CUDA_CHUNK_VALUES = 1 << 28
"""Pixel values that a GPU converts to float at once; limits the memory of views."""


class Crops(NamedTuple):
    """A rectangle of each clip's frames."""

    top: Int[Tensor, " B"]
    left: Int[Tensor, " B"]
    height: Int[Tensor, " B"]
    width: Int[Tensor, " B"]


class Chunk(NamedTuple):
    """Clips of a view that are processed at once, and which operations apply to which of them."""

    first: int
    end: int
    changes: tuple[Change, ...]
    """Color operations in order."""
    gray: Int[Tensor, " gray"]
    """Clips of the chunk to make gray."""
    blurred: Int[Tensor, " blurred"]


def plan_chunks(
    view: VideoViewParameters, frames: UInt8[Tensor, "B T_clip H_clip W_clip 3"]
) -> tuple[Chunk, ...]:
    """Plans on the CPU which operations apply to which clips, so that devices need no decisions."""
    is_blurred = view.blur_sigma.any(dim=1)
    return tuple(
        Chunk(
            first=rows.start,
            end=rows.stop,
            changes=jitter_changes(view.color_order[rows]),
            gray=view.gray[rows].nonzero().squeeze(1),
            blurred=is_blurred[rows].nonzero().squeeze(1),
        )
        for rows in _chunks(frames)
    )


def video_view(
    frames: UInt8[Tensor, "B T_clip H_clip W_clip 3"],
    crops: Crops,
    view: VideoViewParameters,
    chunks: Sequence[Chunk],
    *,
    num_frames: int,
    size: int,
) -> Float[Tensor, "B 3 T H W"]:
    """Computes a view from `num_frames` frames of each clip.

    All tensors must be on one device; `chunks` come from `plan_chunks`.
    """
    device = frames.device
    resize = _resize_matrices(crops, view.flip, frames.shape[2], frames.shape[3], size)
    blur = blur_matrix(view.blur_sigma.float(), size=size, radius=size // 20)
    factors = view.color_factors.float()
    video = torch.empty(
        (len(frames), 3, num_frames, size, size), dtype=torch.float32, device=device
    )
    for chunk in chunks:
        rows = slice(chunk.first, chunk.end)
        taken = _take_frames(frames[rows], view.start[rows], num_frames)
        pixels = _resize(taken, *(matrix[rows] for matrix in resize))
        jitter_(pixels, factors[rows], chunk.changes)
        make_gray_(pixels, chunk.gray)
        _blur_(pixels, blur[rows], chunk.blurred)
        _normalize_into(video[rows], pixels)
    return video


@torch.no_grad()
def plain_video_view(
    frames: UInt8[Tensor, "B T H W 3"],
    heights: Int[Tensor, " B"],
    widths: Int[Tensor, " B"],
    size: int,
    crop: tuple[int, int] = (0, 1),
) -> Float[Tensor, "B 3 T size size"]:
    """Computes a view for evaluation: a largest square of all frames, resized.

    Args:
        frames: Clips, padded to one size.
        heights: Their heights.
        widths: Their widths.
        size: Sides of the view.
        crop: Number of the square and how many there are, evenly spaced along the longer side from
            edge to edge; a single one is central.
    """
    side = heights.minimum(widths)
    number, count = crop if crop[1] > 1 else (1, 3)
    top, left = ((room - side) * number // (count - 1) for room in (heights, widths))
    crops = Crops(top, left, side, side)
    upright = torch.zeros_like(side, dtype=torch.bool)
    shape = (len(frames), 3, frames.shape[1], size, size)
    video = torch.empty(shape, dtype=torch.float32, device=frames.device)
    with torch.autocast(frames.device.type, enabled=False):
        resize = _resize_matrices(crops, upright, frames.shape[2], frames.shape[3], size)
        for rows in _chunks(frames):
            pixels = _resize(frames[rows], *(matrix[rows] for matrix in resize))
            _normalize_into(video[rows], pixels)
    return video


def normalize_video(pixels: Float[Tensor, "*B 3 T H W"]) -> Float[Tensor, "*B 3 T H W"]:
    """Normalizes pixels in [0, 1] by ImageNet's mean and deviation of each channel."""
    mean, std = _mean_and_std(pixels)
    return (pixels - mean) / std


def denormalize_video(video: Float[Tensor, "*B 3 T H W"]) -> Float[Tensor, "*B 3 T H W"]:
    """Inverts `normalize_video`."""
    mean, std = _mean_and_std(video)
    return video * std + mean


def resolve_crops(
    view: VideoViewParameters,
    heights: Int[Tensor, " B"],
    widths: Int[Tensor, " B"],
    ratio: Range,
) -> Crops:
    """Computes rectangles from proposed areas and ratios, like torchvision's RandomResizedCrop.

    Uses the first proposal that fits, or else the largest central rectangle with a ratio within
    `ratio`. All tensors must be on one device.
    """
    # float64, so that rounding gives the same pixel on every device.
    area = view.crop_area.double() * (heights * widths).unsqueeze(1)
    proposed_width = (area * view.crop_ratio).sqrt().round().long()
    proposed_height = (area / view.crop_ratio).sqrt().round().long()
    fits = (
        (proposed_width >= 1)
        & (proposed_height >= 1)
        & (proposed_width <= widths.unsqueeze(1))
        & (proposed_height <= heights.unsqueeze(1))
    )
    first = fits.int().argmax(dim=1, keepdim=True)
    any_fits = fits.any(dim=1)
    central_width = widths.minimum((heights.double() * ratio.high).round().long())
    central_height = heights.minimum((widths.double() / ratio.low).round().long())
    width = torch.where(any_fits, proposed_width.gather(1, first).squeeze(1), central_width)
    height = torch.where(any_fits, proposed_height.gather(1, first).squeeze(1), central_height)
    room = torch.stack((heights - height, widths - width), dim=1)
    top, left = torch.where(
        any_fits.unsqueeze(1), integer_offset(view.crop_position, room), room // 2
    ).unbind(dim=1)
    return Crops(top, left, height, width)


def _chunks(frames: Tensor) -> Iterator[slice]:
    num_clips, values_per_clip = len(frames), frames.shape[1:].numel()
    if not frames.is_cpu:
        size = max(1, CUDA_CHUNK_VALUES // max(1, values_per_clip))
    else:
        size = CPU_CHUNK_CLIPS
    for first in range(0, num_clips, size):
        yield slice(first, min(first + size, num_clips))


def _take_frames(frames: Tensor, start: Tensor, num_frames: int) -> Tensor:
    if num_frames == frames.shape[1]:
        return frames
    if len(frames) == 1 and frames.is_cpu:  # without a copy
        return frames[:, int(start) : int(start) + num_frames]
    index = start.unsqueeze(1) + torch.arange(num_frames, device=frames.device)
    return frames[torch.arange(len(frames), device=frames.device).unsqueeze(1), index]


def _resize_matrices(
    crops: Crops, flip: Bool[Tensor, " B"], input_height: int, input_width: int, size: int
) -> tuple[Float[Tensor, "B size H"], Float[Tensor, "B size W"]]:
    """Builds the matrices that crop, resize and flip; the first also scales pixels to [0, 1]."""
    upright = torch.zeros_like(flip)
    over_rows = antialias_matrix(
        crops.top, crops.height, upright, input_size=input_height, output_size=size
    )
    over_columns = antialias_matrix(
        crops.left, crops.width, flip, input_size=input_width, output_size=size
    )
    return over_rows / _LARGEST_PIXEL, over_columns


def _resize(
    frames: UInt8[Tensor, "B T H W 3"],
    over_rows: Float[Tensor, "B size H"],
    over_columns: Float[Tensor, "B size W"],
) -> Float[Tensor, "B 3 size T size"]:
    if frames.is_cpu:
        # Converts only pixels in the crop to float. A GPU would have to synchronize to know them.
        (top, bottom), (left, right) = _support(over_rows), _support(over_columns)
        frames = frames[:, :, top:bottom, left:right]
        over_rows, over_columns = over_rows[:, :, top:bottom], over_columns[:, :, left:right]
    B, T, H, W, C = frames.shape
    size = over_rows.shape[1]
    pixels = torch.empty((B, H, T, W, C), dtype=torch.float32, device=frames.device)
    pixels.copy_(frames.transpose(1, 2))  # converts and reorders in one pass
    pixels = torch.bmm(over_rows, pixels.view(B, H, -1)).view(B, size * T, W, C)
    pixels = pixels.permute(0, 3, 1, 2).reshape(B, -1, W)
    return torch.bmm(pixels, over_columns.mT).view(B, C, size, T, size)


def _support(matrix: Tensor) -> tuple[int, int]:
    """Returns the range of inputs with a weight other than 0 in any clip."""
    used = matrix.amax(dim=(0, 1)).nonzero()
    return int(used[0]), int(used[-1]) + 1


def _blur_(
    pixels: Float[Tensor, "B 3 H T W"],
    matrices: Float[Tensor, "B 2 size size"],
    chosen: Int[Tensor, " chosen"],
) -> None:
    """Blurs the chosen clips vertically and horizontally."""
    if not len(chosen):
        return
    over_rows, over_columns = matrices[chosen].repeat_interleave(3, dim=0).unbind(dim=1)
    B, C, H, T, W = len(chosen), *pixels.shape[1:]
    blurred = torch.bmm(over_rows, pixels[chosen].view(B * C, H, T * W))
    pixels[chosen] = torch.bmm(blurred.view(B * C, H * T, W), over_columns.mT).view(B, C, H, T, W)


def _normalize_into(video: Float[Tensor, "B 3 T H W"], pixels: Float[Tensor, "B 3 H T W"]) -> None:
    mean, std = _mean_and_std(pixels)
    video.copy_(pixels.sub_(mean).div_(std).transpose(2, 3))


def _mean_and_std(like: Tensor) -> tuple[Float[Tensor, "3 1 1 1"], Float[Tensor, "3 1 1 1"]]:
    """Fills numbers in on the device, since a tensor of Python numbers needs a blocking copy."""
    numbers = [like.new_full((1,), number) for number in (*VIDEO_MEAN, *VIDEO_STD)]
    mean, std = torch.cat(numbers).view(2, 3, 1, 1, 1)
    return mean, std
