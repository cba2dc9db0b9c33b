"""The orientation of a picture, from the display matrix of a container or codec.

A matrix maps a stored pixel `(x, y)`, with y pointing down, to its position on the screen:

    x' = a x + c y + tx        stored   a=-1 d=1     a=0 b=1 c=-1 d=0    a=0 b=1 c=1 d=0
    y' = b x + d y + ty         1 2       2 1              3 1                1 3
                                3 4       4 3              4 2                2 4
                                       (mirrored)   (quarter turn right)  (transposed)

Translations only move the picture and scales only enlarge it. What remains is the closest of the
eight orientations of a rectangle.
"""

import struct
from dataclasses import dataclass
from math import hypot

import numpy as np
from numpy.typing import NDArray

_WAYS = tuple(
    (first, second, is_transposed)
    for is_transposed in (False, True)
    for first in (1, -1)
    for second in (1, -1)
)
"""The signs of the two rows of a matrix, and whether their entries lie off the diagonal."""


@dataclass(frozen=True)
class Orientation:
    """The change from stored to shown pixels: transpose first, then flip."""

    is_transposed: bool = False
    is_flipped_x: bool = False
    """Whether left and right are exchanged."""
    is_flipped_y: bool = False

    @property
    def is_mirrored(self) -> bool:
        """Whether text in the stored picture is mirrored."""
        return self.is_transposed ^ self.is_flipped_x ^ self.is_flipped_y

    @property
    def rotation(self) -> int:
        """Degrees counterclockwise, in (-180, 180], of the rotation that follows any mirroring.

        Mirroring exchanges left and right. The eight orientations are the four rotations with and
        without it.
        """
        if self.is_transposed:
            return -90 if self.is_flipped_y == self.is_mirrored else 90
        return 180 if self.is_flipped_y else 0

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Returns a picture, H W 3, as it is shown."""
        if self.is_transposed:
            pixels = pixels.transpose(1, 0, 2)
        if self.is_flipped_x:
            pixels = pixels[:, ::-1]
        return pixels[::-1] if self.is_flipped_y else pixels


UPRIGHT = Orientation()


def read_orientation(matrix: bytes) -> Orientation:
    """Reads the 36 bytes of a display matrix. A singular matrix changes nothing.

    An angle is rounded to the nearest quarter turn, because stored frames have no empty corners.
    """
    if len(matrix) < 36:
        return UPRIGHT
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix[:36])
    rows = ((a, c), (b, d))
    if a * d == b * c:
        return UPRIGHT
    (a, c), (b, d) = ((x / hypot(x, y), y / hypot(x, y)) for x, y in rows)

    def agreement(way: tuple[int, int, bool]) -> float:
        first, second, is_transposed = way
        return first * (c if is_transposed else a) + second * (b if is_transposed else d)

    first, second, is_transposed = max(_WAYS, key=agreement)
    return Orientation(is_transposed, first < 0, second < 0)
