"""Facts about resized position tables."""

import pytest
import torch
import torch.nn.functional as F

from xkd_core.positions import resize_positions


def ramp(length):
    """A table whose entry is its own position."""
    return torch.arange(length, dtype=torch.float32)[:, None]


def test_published_scale_samples_8_frames_at_1_405_and_5_214():
    resized = resize_positions(ramp(8), (8, 1, 1), (2, 1, 1), "scale_factor")
    torch.testing.assert_close(resized.flatten(), torch.tensor([1.405, 5.214]), atol=5e-4, rtol=0)


def test_exact_size_samples_8_frames_at_1_5_and_5_5():
    resized = resize_positions(ramp(8), (8, 1, 1), (2, 1, 1), "exact")
    torch.testing.assert_close(resized.flatten(), torch.tensor([1.5, 5.5]))


@pytest.mark.parametrize("method", ["scale_factor", "exact"])
@pytest.mark.parametrize("new_grid", [(2, 6, 6), (4, 3, 9)])
def test_a_video_table_is_resized_as_trilinear_interpolation_does(method, new_grid):
    grid, table = (8, 7, 7), torch.randn(8 * 7 * 7, 5)
    factors = tuple((new + 0.1) / old for new, old in zip(new_grid, grid, strict=True))
    target = {"size": new_grid} if method == "exact" else {"scale_factor": factors}
    volume = table.T.reshape(1, 5, *grid)
    expected = F.interpolate(volume, mode="trilinear", **target)
    resized = resize_positions(table, grid, new_grid, method)
    torch.testing.assert_close(resized, expected[0].flatten(1).T)


@pytest.mark.parametrize("method", ["scale_factor", "exact"])
def test_a_spectrogram_table_is_resized_in_time_alone_by_cubic_interpolation(method):
    table = torch.randn(20 * 28, 5)
    target = {"size": (20, 7)} if method == "exact" else {"scale_factor": (1.0, 7.1 / 28)}
    expected = F.interpolate(table.T.reshape(1, 5, 20, 28), mode="bicubic", **target)
    resized = resize_positions(table, (20, 28), (20, 7), method)
    torch.testing.assert_close(resized, expected[0].flatten(1).T)


def test_every_position_of_the_table_can_learn_from_a_larger_clip():
    table = torch.randn(8, 3, requires_grad=True)
    resize_positions(table, (2, 2, 2), (4, 4, 4), "exact").sum().backward()
    assert (table.grad > 0).all()
