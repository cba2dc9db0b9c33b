"""From a decoded frame to the pixels that are stored: cropped, scaled, laid upright.

The shape of a picture follows from the frame itself, so a stream whose size, pixel aspect or
orientation changes in the middle gives pictures of several shapes. `fitted` brings them together
where one array must hold them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from pipelines.media.orientation import UPRIGHT, read_orientation

MAX_ELONGATION = 8
"""The longer side of a stored frame is at most this many short sides."""

Pixels = NDArray[np.uint8]


class PixelLimitError(Exception):
    """A frame is larger than allowed."""


@dataclass(frozen=True)
class Crop:
    """Borders that a container says are not shown, in pixels of the decoded frame."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0

    def window(self, width: int, height: int) -> tuple[slice, slice]:
        """Rows and columns that are shown: all of them if the borders would leave none."""
        borders = (self.left, self.right, self.top, self.bottom)
        if min(borders) < 0 or self.left + self.right >= width or self.top + self.bottom >= height:
            return slice(0, height), slice(0, width)
        return slice(self.top, height - self.bottom), slice(self.left, width - self.right)


WHOLE = Crop()


class PictureConverter:
    """Turns decoded frames into RGB of the stored size; `orientation` is that of the last one."""

    def __init__(self, *, crop: Crop, short_side: int, max_pixels: int) -> None:
        self.orientation = UPRIGHT
        self._crop = crop
        self._short_side = short_side
        self._max_pixels = max_pixels
        self._reformatter = VideoReformatter()

    def look(self, frame: VideoFrame) -> None:
        """Notes how a frame is laid upright, and those after it that do not say.

        Containers say so of each frame, codecs at a key frame alone, for all that follow it.
        """
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        if matrix is not None:
            self.orientation = read_orientation(bytes(matrix))
        elif frame.key_frame:
            self.orientation = UPRIGHT

    def convert(self, frame: VideoFrame, pixel_aspect: float) -> Pixels:
        """Gives a frame as it is shown, H W 3.

        Raises:
            PixelLimitError: If it is larger than `max_pixels`.
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
        # Cut at full size, because borders are seldom whole pixels of the stored size.
        whole = self._scaled(frame, frame.width, frame.height)
        return VideoFrame.from_ndarray(np.ascontiguousarray(whole[rows, columns]), format="rgb24")

    def _scaled(self, frame: VideoFrame, width: int, height: int) -> Pixels:
        small = self._reformatter.reformat(
            frame, width, height, "rgb24", interpolation=Interpolation.AREA, threads=1
        )
        return small.to_ndarray().view(np.uint8)  # which it is; rgb24 has no other type


def stored_size(width: int, height: int, pixel_aspect: float, short_side: int) -> tuple[int, int]:
    """Scales to the short side, never up; pixels become square."""
    display_width = width * pixel_aspect if 0.1 < pixel_aspect < 10 else float(width)
    scale = min(
        1.0,
        short_side / min(display_width, height),
        MAX_ELONGATION * short_side / max(display_width, height),
    )
    return max(1, round(display_width * scale)), max(1, round(height * scale))


def fitted(pixels: Pixels, height: int, width: int) -> Pixels:
    """Shows a picture as large as a page allows, in its middle, with black around it.

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
    """Brings pictures to the shape that most of them have, the first one of equally many."""
    counts: dict[tuple[int, ...], int] = {}
    for picture in pictures:
        counts[picture.shape] = counts.get(picture.shape, 0) + 1
    height, width, _ = max(counts, key=lambda shape: counts[shape])
    if len(counts) == 1:
        return pictures
    # A picture that stays on for many ticks is one array, which is scaled once.
    other = {id(p): p for p in pictures if p.shape[:2] != (height, width)}
    pages = {key: fitted(picture, height, width) for key, picture in other.items()}
    return [pages.get(id(picture), picture) for picture in pictures]
