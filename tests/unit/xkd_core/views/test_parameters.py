"""What is drawn for a view follows the method's distributions and belongs to its clip alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xkd_core.config import MethodConfig, ViewsConfig
from xkd_core.views.parameters import clip_generator, draw_view_parameters

CONFIG = MethodConfig(views=ViewsConfig(num_video_locals=2, num_audio_locals=2))


def draw(num_clips, config=CONFIG):
    return draw_view_parameters([f"clip {i}" for i in range(num_clips)], [3] * num_clips, 0, config)


def tensors_of(parameters):
    if isinstance(parameters, torch.Tensor):
        return [parameters]
    return [tensor for part in parameters for tensor in tensors_of(part)]


def assert_uniform(values, low, high):
    """Mean and deviation within five standard errors, and nothing outside."""
    values = values.double().flatten()
    assert low <= values.min()
    assert values.max() <= high
    width, count = high - low, len(values)
    assert abs(values.mean() - (low + high) / 2) < 5 * width / math.sqrt(12 * count)
    assert abs(values.std() - width / math.sqrt(12)) < 5 * width / math.sqrt(60 * count)


def assert_share(flags, probability):
    error = math.sqrt(probability * (1 - probability) / flags.numel())
    assert abs(flags.double().mean() - probability) < 5 * error


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True), st.integers(0, 5))
def test_a_clips_parameters_do_not_depend_on_its_batch(clips, epoch):
    ids = [f"clip {clip}" for clip in clips]
    together = draw_view_parameters(ids, [epoch] * len(ids), 7, CONFIG)
    alone = draw_view_parameters(ids[-1:], [epoch], 7, CONFIG)
    for whole, row in zip(tensors_of(together), tensors_of(alone), strict=True):
        assert torch.equal(whole[-1:], row)


def test_seed_epoch_clip_and_purpose_each_change_the_numbers():
    def first(*key):
        return clip_generator(*key).random()

    numbers = {
        first(0, 0, "a"),
        first(1, 0, "a"),
        first(0, 1, "a"),
        first(0, 0, "b"),
        first(0, 0, "a", "window"),
        first(0, 0, 'a", "window'),
    }
    assert len(numbers) == 6
    assert first(0, 0, "a") == first(0, 0, "a")


def test_numbers_stay_the_same_between_versions():
    assert clip_generator(0, 0, "a").random() == 0.6674993659409769


def test_global_crops_and_jitter_follow_the_method():
    view = draw(3000).video_globals[0]
    assert_uniform(view.crop_area, 0.2, 1.0)
    assert_uniform(view.crop_ratio.log(), math.log(3 / 4), math.log(4 / 3))
    assert_uniform(view.crop_position, 0.0, 1.0)
    assert_uniform(view.color_factors[:, :3], 0.6, 1.4)
    assert_uniform(view.color_factors[:, 3], -0.2, 0.2)
    assert_share(view.flip, 0.5)
    assert not view.start.any()
    assert not view.gray.any()
    assert not view.blur_sigma.any()


def test_local_crops_gray_and_blur_follow_the_method():
    first, second = draw(3000).video_locals
    assert not torch.equal(first.crop_area, second.crop_area)
    assert_uniform(first.crop_area, 0.08, 0.4)
    assert_share(first.gray, 0.2)
    blurred = first.blur_sigma[:, 0] > 0
    assert_share(blurred, 0.5)
    assert_uniform(first.blur_sigma[blurred, 0], 0.1, 2.0)
    assert torch.equal(first.blur_sigma[:, 0], first.blur_sigma[:, 1])
    assert set(first.start.tolist()) == set(range(25))


def test_local_views_are_flipped_and_jittered_as_global_ones():
    for view in draw(3000).video_locals:
        assert_share(view.flip, 0.5)
        assert_uniform(view.crop_ratio.log(), math.log(3 / 4), math.log(4 / 3))
        assert_uniform(view.color_factors[:, :3], 0.6, 1.4)
        assert_uniform(view.color_factors[:, 3], -0.2, 0.2)


def test_windows_of_picture_and_sound_are_equally_likely_and_independent():
    parameters = draw(5000)
    frame, sample = parameters.video_locals[0].start, parameters.audio_locals[0].start
    expected = 5000 / 25
    assert (frame.bincount(minlength=25) - expected).abs().max() < 5 * math.sqrt(expected)
    assert_uniform((sample / 100 + 0.5) / 481, 0.0, 1.0)
    together = torch.corrcoef(torch.stack([frame, sample]).double())[0, 1]
    assert abs(together) < 5 / math.sqrt(5000)


def test_fixed_blur_is_the_published_vertical_one():
    config = MethodConfig(views=ViewsConfig(local_blur_sigma="fixed"))
    sigma = draw(200, config).video_locals[0].blur_sigma
    assert set(map(tuple, sigma.tolist())) == {(0.0, 0.0), (2.0, 0.1)}


def test_all_orders_of_colour_operations_are_equally_likely():
    orders = draw(4800).video_globals[0].color_order
    assert torch.equal(orders.sort(dim=1).values, torch.arange(4).expand(4800, 4))
    _, counts = orders.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert (counts - 200).abs().max() < 5 * math.sqrt(200)


def test_sound_windows_and_volumes_follow_the_method():
    parameters = draw(4000)
    assert not parameters.audio_globals[0].start.any()
    assert_uniform(parameters.audio_globals[0].volume, 0.9, 1.1)
    local = parameters.audio_locals[0]
    assert not (local.start % 100).any()
    assert (local.start.min(), local.start.max()) == (0, 48_000)
    assert_uniform(local.volume, 0.8, 1.2)
    assert_uniform(local.crop_size, 0.6, 1.5)
    assert not torch.equal(local.start, parameters.audio_locals[1].start)


def test_mask_noise_is_uniform_with_a_number_for_each_token():
    parameters = draw(50)
    assert parameters.video_mask_noise.shape == (50, 392)
    assert parameters.audio_mask_noise.shape == (50, 560)
    assert_uniform(parameters.video_mask_noise, 0.0, 1.0)
    assert_uniform(parameters.audio_mask_noise, 0.0, 1.0)


def test_a_probability_moves_no_other_draw():
    views = ViewsConfig(
        num_video_locals=2, num_audio_locals=2, flip_probability=0.0, local_blur_probability=0.0
    )
    plain, changed = draw(8), draw(8, MethodConfig(views=views))
    assert not changed.video_globals[0].flip.any()
    assert torch.equal(plain.video_locals[1].crop_area, changed.video_locals[1].crop_area)
    assert torch.equal(plain.audio_mask_noise, changed.audio_mask_noise)


def test_epochs_must_be_as_many_as_clips():
    with pytest.raises(ValueError, match=r"epochs \(1 of them\) must be as many as clip_ids \(2\)"):
        draw_view_parameters(["a", "b"], [0], 0, CONFIG)
