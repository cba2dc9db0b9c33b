"""Crops, scales and rotates decoded frames to the pixels that are stored.

The shape of a picture follows from its frame, so a stream whose size, pixel aspect or orientation
changes gives pictures of several shapes. `fitted` makes them one shape where one array must hold
them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from pipelines.media.orientation import UPRIGHT, read_orientation

MAX_ELONGATION = 8
"""Limit of the longer side of a stored frame, in short sides."""

Pixels = NDArray[np.uint8]


class PixelLimitError(Exception):
    """Raised for a frame that is larger than allowed."""


@dataclass(frozen=True)
class Crop:
    """Borders that a container hides, in pixels of the decoded frame."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0

    def window(self, width: int, height: int) -> tuple[slice, slice]:
        """Returns the rows and columns to show: all of them if the borders would leave none."""
        borders = (self.left, self.right, self.top, self.bottom)
        if min(borders) < 0 or self.left + self.right >= width or self.top + self.bottom >= height:
            return slice(0, height), slice(0, width)
        return slice(self.top, height - self.bottom), slice(self.left, width - self.right)


WHOLE = Crop()


class PictureConverter:
    """Converts frames to RGB of the stored size; `orientation` is that of the last frame."""

    def __init__(self, *, crop: Crop, short_side: int, max_pixels: int) -> None:
        self.orientation = UPRIGHT
        self._crop = crop
        self._short_side = short_side
        self._max_pixels = max_pixels
        self._reformatter = VideoReformatter()

    def look(self, frame: VideoFrame) -> None:
        """Reads the orientation of a frame, which holds for later frames that declare none.

        A container declares it for each frame, a codec only at key frames.
        """
        # `frame.side_data` would refer to the frame and the frame to it, which keeps the frame in
        # memory until the garbage collector runs.
        side_data_of: Any = SideDataContainer  # its argument is missing in the type stubs
        matrix: Any = side_data_of(frame).get("DISPLAYMATRIX")
        if matrix is not None:
            self.orientation = read_orientation(bytes(matrix))
        elif frame.key_frame:
            self.orientation = UPRIGHT

    def convert(self, frame: VideoFrame, pixel_aspect: float) -> Pixels:
        """Converts a frame to the picture that is shown, H W 3.

        Raises:
            PixelLimitError: If the frame is larger than `max_pixels`.
        """
        if frame.width * frame.height > self._max_pixels:
            size = f"{frame.width} x {frame.height}"
            raise PixelLimitError(f"a frame of {size}, limits.max_pixels ({self._max_pixels})")
        self.look(frame)
        if self._crop != WHOLE:
            frame = self._cropped(frame)
        width, height = stored_size(frame.width, frame.height, pixel_aspect, self._short_side)
        return self.orientation.apply(self._scaled(frame, width, height))

    def _cropped(self, frame: VideoFrame) -> VideoFrame:
        rows, columns = self._crop.window(frame.width, frame.height)
        # Crop at full size, because borders are seldom whole pixels of the stored size.
        whole = self._scaled(frame, frame.width, frame.height)
        return VideoFrame.from_ndarray(np.ascontiguousarray(whole[rows, columns]), format="rgb24")

    def _scaled(self, frame: VideoFrame, width: int, height: int) -> Pixels:
        small = self._reformatter.reformat(
            frame, width, height, "rgb24", interpolation=Interpolation.AREA, threads=1
        )
        return small.to_ndarray().view(np.uint8)  # rgb24 always gives uint8


def stored_size(width: int, height: int, pixel_aspect: float, short_side: int) -> tuple[int, int]:
    """Returns the size after scaling down to the short side, with square pixels."""
    display_width = width * pixel_aspect if 0.1 < pixel_aspect < 10 else float(width)
    scale = min(
        1.0,
        short_side / min(display_width, height),
        MAX_ELONGATION * short_side / max(display_width, height),
    )
    return max(1, round(display_width * scale)), max(1, round(height * scale))


def fitted(pixels: Pixels, height: int, width: int) -> Pixels:
    """Scales a picture to fit a page and centers it on black.

    A 4:3 picture on a 16:9 page:

        +--+-------+--+
        |  |       |  |
        |  |       |  |
        +--+-------+--+
    """
    own_height, own_width = pixels.shape[:2]
    scale = min(height / own_height, width / own_width)
    inner_height = min(height, max(1, round(own_height * scale)))
    inner_width = min(width, max(1, round(own_width * scale)))
    if (inner_height, inner_width) != (own_height, own_width):
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        small = VideoReformatter().reformat(
            frame, inner_width, inner_height, "rgb24", interpolation=Interpolation.AREA, threads=1
        )
        pixels = small.to_ndarray().view(np.uint8)
    page = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    page[top : top + inner_height, left : left + inner_width] = pixels
    return page


def same_shape(pictures: list[Pixels]) -> list[Pixels]:
    """Brings pictures to their most frequent shape; of equally frequent ones, to the first."""
    counts: dict[tuple[int, ...], int] = {}
    for picture in pictures:
        counts[picture.shape] = counts.get(picture.shape, 0) + 1
    height, width, _ = max(counts, key=lambda shape: counts[shape])
    if len(counts) == 1:
        return pictures
    # A picture that is shown for many ticks is one array, scaled once.
    other = {id(p): p for p in pictures if p.shape[:2] != (height, width)}
    pages = {key: fitted(picture, height, width) for key, picture in other.items()}
    return [pages.get(id(picture), picture) for picture in pictures]
