"""Facts about masks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xkd_core.config import AudioConfig, VideoConfig
from xkd_core.masking import random_mask, restore_tokens, take_tokens, video_mask_noise


@given(num_tokens=st.integers(2, 60), share=st.floats(0.0, 1.0), seed=st.integers(0, 99))
def test_visible_and_hidden_tokens_partition_the_clip(num_tokens, share, seed):
    num_kept = min(num_tokens - 1, max(1, int(share * num_tokens)))
    noise = torch.rand(3, num_tokens, generator=torch.Generator().manual_seed(seed))
    mask = random_mask(noise, num_kept)
    visible = torch.zeros(3, num_tokens, dtype=torch.bool).scatter(1, mask.keep, True)
    assert torch.equal(visible, ~mask.hidden)
    masked = torch.zeros(3, num_tokens, dtype=torch.bool).scatter(1, mask.masked, True)
    assert torch.equal(masked, mask.hidden)
    assert mask.hidden.sum(dim=1).tolist() == [num_tokens - num_kept] * 3


def test_the_lowest_noise_stays_visible():
    mask = random_mask(torch.tensor([[0.9, 0.1, 0.5, 0.3]]), 2)
    assert mask.keep.tolist() == [[1, 3]]
    assert mask.masked.tolist() == [[2, 0]]
    assert mask.hidden.tolist() == [[True, False, True, False]]


def test_the_mask_of_a_clip_does_not_depend_on_its_batch():
    noise = torch.rand(4, 20)
    assert torch.equal(random_mask(noise, 5).keep[2:], random_mask(noise[2:], 5).keep)


def test_restoring_puts_each_token_back_in_its_place():
    tokens, mask_token = torch.randn(3, 10, 4), torch.full((1, 1, 4), 7.0)
    mask = random_mask(torch.rand(3, 10), 4)
    restored = restore_tokens(take_tokens(tokens, mask.keep), mask_token, mask.restore)
    expected = torch.where(mask.hidden.unsqueeze(-1), mask_token, tokens)
    assert torch.equal(restored, expected)


def test_the_papers_ratios_leave_59_of_392_and_112_of_560():
    assert (VideoConfig().num_visible, VideoConfig().num_tokens) == (59, 392)
    assert (AudioConfig().num_visible, AudioConfig().num_tokens) == (112, 560)


def test_local_views_of_the_paper_have_72_and_140_tokens():
    assert math.prod(VideoConfig().local_grid) == 72
    assert math.prod(AudioConfig().local_grid) == 140


@given(st.integers(1, 8), st.floats(0.05, 0.95), st.integers(0, 99))
def test_a_tube_hides_the_same_places_at_all_times(num_times, mask_ratio, seed):
    video = VideoConfig(
        num_frames=4 * num_times, local_num_frames=4, masking="tube", mask_ratio=mask_ratio
    )
    noise = torch.rand(3, video.num_tokens, generator=torch.Generator().manual_seed(seed))
    mask = random_mask(video_mask_noise(noise, video), video.num_visible)
    hidden = mask.hidden.unflatten(1, video.grid)
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    assert (~hidden[:, 0]).sum(dim=(1, 2)).tolist() == [round(49 * (1.0 - mask_ratio))] * 3


def test_tubes_of_the_paper_leave_7_of_49_places():
    assert VideoConfig(masking="tube").num_visible == 8 * 7


def test_without_tubes_noise_is_as_it_was_drawn():
    noise = torch.rand(2, 392)
    assert video_mask_noise(noise, VideoConfig()) is noise


def test_a_tube_mask_must_leave_some_places():
    with pytest.raises(ValueError, match=r"mask_ratio must leave 1 to 48 of 49 tokens visible"):
        VideoConfig(masking="tube", mask_ratio=0.995)


@pytest.mark.parametrize("num_kept", [0, 8])
def test_a_mask_must_hide_some_tokens_and_leave_some(num_kept):
    with pytest.raises(ValueError, match=rf"num_visible \({num_kept}\) must be 1 to 7"):
        random_mask(torch.rand(1, 8), num_kept)
