"""Each matrix does what the library function does that it stands for."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tvf

from xkd_core.views.resampling import antialias_matrix, bicubic_matrix, blur_matrix


def one(value):
    return torch.tensor([value])


@given(st.data())
def test_antialias_matrix_resizes_a_crop_as_torchvision(data):
    size = data.draw(st.integers(2, 60), "input size")
    length = data.draw(st.integers(1, size), "length")
    start = data.draw(st.integers(0, size - length), "start")
    output = data.draw(st.integers(1, 60), "output size")
    signal = torch.rand(1, 1, size, 3, generator=torch.Generator().manual_seed(size))
    matrix = antialias_matrix(
        one(start), one(length), one(False), input_size=size, output_size=output
    )
    expected = F.interpolate(
        signal[:, :, start : start + length],
        size=(output, 3),
        mode="bilinear",
        antialias=True,
    )
    torch.testing.assert_close(matrix @ signal[0], expected[0], atol=2e-5, rtol=0)


@given(st.data())
def test_antialias_matrix_averages(data):
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5)))
    flip = torch.tensor(data.draw(st.lists(st.booleans(), min_size=5, max_size=5)))[: len(lengths)]
    matrix = antialias_matrix(40 - lengths, lengths, flip, input_size=40, output_size=16)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(dim=2), torch.ones(len(lengths), 16))
    # Nothing outside of the crop is looked at.
    outside = torch.arange(40) < (40 - lengths).unsqueeze(1)
    assert not matrix.masked_select(outside.unsqueeze(1)).any()


def test_flip_reverses_the_output():
    arguments = {"input_size": 20, "output_size": 8}
    straight = antialias_matrix(one(3), one(12), one(False), **arguments)
    flipped = antialias_matrix(one(3), one(12), one(True), **arguments)
    torch.testing.assert_close(flipped, straight.flip(1))


@given(st.data())
def test_bicubic_matrix_resizes_a_crop_as_torch(data):
    size = data.draw(st.integers(1, 40), "input size")
    length = data.draw(st.integers(1, size), "length")
    start = data.draw(st.integers(0, size - length), "start")
    output = data.draw(st.integers(1, 40), "output size")
    signal = torch.rand(1, 1, size, 3, generator=torch.Generator().manual_seed(size))
    matrix = bicubic_matrix(one(start), one(length), input_size=size, output_size=output)
    expected = F.interpolate(
        signal[:, :, start : start + length],
        size=(output, 3),
        mode="bicubic",
        align_corners=True,
    )
    torch.testing.assert_close(matrix @ signal[0], expected[0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("sigma", [(0.1, 2.0), (0.7, 0.7), (2.0, 0.1)])
def test_blur_matrices_blur_as_torchvision(sigma):
    image = torch.rand(3, 24, 24)
    over_rows, over_columns = (blur_matrix(one(s), size=24, radius=4)[0] for s in sigma)
    blurred = over_rows @ image @ over_columns.T
    # torchvision names the horizontal sigma first.
    expected = tvf.gaussian_blur(image, [9, 9], [sigma[1], sigma[0]])
    torch.testing.assert_close(blurred, expected, atol=1e-5, rtol=0)


def test_no_sigma_no_blur():
    matrix = blur_matrix(torch.tensor([0.0, 1.0]), size=16, radius=2)
    assert torch.equal(matrix[0], torch.eye(16))
    assert not torch.equal(matrix[1], torch.eye(16))
