import itertools
import struct

import numpy as np
import pytest

from pipelines.media.decode import decode_segments
from pipelines.media.orientation import UPRIGHT, read_orientation
from tests.helpers.media import DECODE, write_media
from tests.helpers.mp4_boxes import set_display_matrix

EIGHT = [
    *[(a, 0, 0, d) for a, d in itertools.product((1, -1), repeat=2)],
    *[(0, b, c, 0) for b, c in itertools.product((1, -1), repeat=2)],
]
"""(a, b, c, d) of the ways in which a picture can be laid down."""
GRAYS = np.array([[30, 100], [170, 240]], np.uint8)


def packed(a, b, c, d, x=0, y=0):
    return struct.pack("=9i", *(round(v * 2**16) for v in (a, b, 0, c, d, 0, x, y)), 2**30)


def laid_down(a, b, c, d):
    """Where the matrix puts the quarters of a picture: computed from their middles."""
    shown = {}
    for row, column in itertools.product((0, 1), repeat=2):
        x, y = column - 0.5, row - 0.5
        shown[a * x + c * y > 0, b * x + d * y > 0] = GRAYS[row, column]
    return np.array(
        [[shown[False, False], shown[True, False]], [shown[False, True], shown[True, True]]]
    )


def quarters(frame):
    """The gray level in the middle of each quarter."""
    height, width = frame.shape[:2]
    rows, columns = (height // 4, height * 3 // 4), (width // 4, width * 3 // 4)
    return np.array([[int(frame[row, column].mean()) for column in columns] for row in rows])


@pytest.mark.parametrize("matrix", EIGHT)
@pytest.mark.parametrize(("scale", "move"), [(1, 0), (0.5, 300), (3, -40)])
def test_each_way_of_laying_down_is_read_whatever_its_scale_and_place(matrix, scale, move):
    pixels = np.repeat(GRAYS, 3, axis=1)[..., None].repeat(3, axis=2)
    found = read_orientation(packed(*(scale * value for value in matrix), move, move))
    assert np.array_equal(quarters(found.apply(pixels)), laid_down(*matrix))


@pytest.mark.parametrize("matrix", EIGHT)
def test_rotation_follows_mirroring(matrix):
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    found = read_orientation(packed(*matrix))
    first = pixels[:, ::-1] if found.is_mirrored else pixels
    assert np.array_equal(found.apply(pixels), np.rot90(first, found.rotation // 90))


@pytest.mark.parametrize(
    "matrix", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 1, 0), (1, 1, 1, 1), (0, 1, 0, 1)]
)
def test_a_matrix_that_flattens_the_picture_turns_nothing(matrix):
    assert read_orientation(packed(*matrix)) == UPRIGHT
    assert read_orientation(b"") == UPRIGHT


@pytest.mark.parametrize(
    ("degrees", "rotation"), [(2, 0), (44, 0), (46, -90), (179, 180), (300, 90)]
)
def test_an_angle_between_turns_is_the_nearer_one(degrees, rotation):
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    found = read_orientation(packed(cosine, sine, -sine, cosine))
    assert (found.rotation, found.is_mirrored) == (rotation, False)


@pytest.mark.parametrize("matrix", EIGHT)
def test_a_decoded_picture_is_shown_as_the_container_says(tmp_path, matrix):
    frame = np.repeat(np.repeat(GRAYS, 24, axis=0), 32, axis=1)[..., None].repeat(3, axis=2)
    path = write_media(tmp_path / "clip.mp4", [frame] * 50)
    a, b, c, d = matrix
    set_display_matrix(path, (a, b, 0, c, d, 0, 48, 20, 1))
    (segment,) = decode_segments(str(path), **DECODE)
    assert segment.frames.shape[1:3] == ((64, 48) if a == 0 else (48, 64))
    assert quarters(segment.frames[0]) == pytest.approx(laid_down(*matrix), abs=4)
