"""Colour jitter is torchvision's, clip by clip."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tvf

from xkd_core.views.color import (
    brightness_,
    contrast_,
    jitter_,
    jitter_changes,
    make_gray_,
    saturation_,
    turn_hue_,
)

TORCHVISION = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue)


def make_pixels(num_clips):
    pixels = torch.rand(num_clips, 3, 6, 4, 5, generator=torch.Generator().manual_seed(num_clips))
    pixels[:, :, 0, 0, 0] = 0.0  # black, white, gray and saturated pixels are the hard cases
    pixels[:, :, 0, 0, 1] = 1.0
    pixels[:, :, 0, 0, 2] = 0.5
    pixels[:, 0, 0, 0, 3] = 0.0
    pixels[:, 1:, 0, 0, 3] = 1.0
    return pixels


def as_images(pixels):
    return pixels.permute(0, 3, 1, 2, 4)  # B T 3 H W


@pytest.mark.parametrize(
    ("ours", "theirs", "factor"),
    [
        (brightness_, tvf.adjust_brightness, 0.6),
        (brightness_, tvf.adjust_brightness, 1.4),
        (contrast_, tvf.adjust_contrast, 0.6),
        (contrast_, tvf.adjust_contrast, 1.4),
        (saturation_, tvf.adjust_saturation, 0.0),
        (saturation_, tvf.adjust_saturation, 1.4),
        (turn_hue_, tvf.adjust_hue, -0.5),
        (turn_hue_, tvf.adjust_hue, -0.13),
        (turn_hue_, tvf.adjust_hue, 0.0),
        (turn_hue_, tvf.adjust_hue, 0.2),
        (turn_hue_, tvf.adjust_hue, 0.5),
    ],
)
def test_each_operation_is_torchvisions(ours, theirs, factor):
    pixels = make_pixels(2)
    expected = theirs(as_images(pixels), factor)
    ours(pixels, torch.full((2,), factor))
    torch.testing.assert_close(as_images(pixels), expected, atol=2e-6, rtol=0)


@given(st.lists(st.permutations(range(4)), min_size=1, max_size=4))
def test_jitter_applies_each_clips_operations_in_its_own_order(orders):
    pixels = make_pixels(len(orders))
    factors = torch.linspace(-0.2, 0.4, len(orders) * 4).view(-1, 4)
    factors[:, :3] += 1.0
    expected = as_images(pixels).clone()
    for clip, order in enumerate(orders):
        for number in order:
            expected[clip] = TORCHVISION[number](expected[clip], factors[clip, number].item())
    jitter_(pixels, factors, jitter_changes(torch.tensor(orders)))
    torch.testing.assert_close(as_images(pixels), expected, atol=1e-5, rtol=0)


def test_neutral_factors_change_nothing():
    pixels = make_pixels(3)
    before = pixels.clone()
    order = torch.arange(4).expand(3, 4)
    jitter_(pixels, torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(3, 4), jitter_changes(order))
    torch.testing.assert_close(pixels, before, atol=2e-6, rtol=0)


def test_only_the_chosen_clips_become_gray():
    pixels = make_pixels(3)
    before = pixels.clone()
    make_gray_(pixels, torch.tensor([1]))
    assert torch.equal(pixels[::2], before[::2])
    torch.testing.assert_close(
        as_images(pixels)[1], tvf.rgb_to_grayscale(as_images(before)[1], 3), atol=1e-6, rtol=0
    )
