"""Views are what torchvision and BYOL-A make of the same parameters, clip by clip."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tvf

from xkd_core.config import (
    AudioConfig,
    MethodConfig,
    ModelConfig,
    Range,
    VideoConfig,
    ViewsConfig,
)
from xkd_core.views import video as video_views
from xkd_core.views.log_mel import LogMel
from xkd_core.views.parameters import draw_view_parameters
from xkd_core.views.video import denormalize_video, normalize_video, plain_video_view, resolve_crops
from xkd_core.views.views import ClipBatch, make_views, plain_audio_view, plain_views, split_views

VIDEO = VideoConfig(
    num_frames=8, frame_rate=8, size=32, local_num_frames=4, local_size=24, patch_size=8
)
AUDIO = AudioConfig(num_samples=16_000, local_num_samples=8_000, hop_length=143, patch_frames=8)
CONFIG = MethodConfig(
    model=ModelConfig(video=VIDEO, audio=AUDIO),
    views=ViewsConfig(num_video_locals=2, num_audio_locals=2),
)
TORCHVISION_JITTER = (
    tvf.adjust_brightness,
    tvf.adjust_contrast,
    tvf.adjust_saturation,
    tvf.adjust_hue,
)
SIZES = ((48, 64), (64, 40), (30, 120), (37, 37), (90, 91), (64, 64))


def make_image(height, width, shift):
    """Waves, an edge and some noise: smooth and sharp regions, all colors."""
    y = torch.arange(height).view(-1, 1, 1) / height
    x = torch.arange(width).view(1, -1, 1) / width
    channel = torch.arange(3)
    image = 0.5 + 0.4 * torch.sin(9 * x + (7 + channel) * y + shift + 2 * channel)
    image = torch.where((x > 0.5) & (y > 0.3), image, 1 - image)
    return (255 * image + 20 * torch.rand(height, width, 3) - 10).clamp(0, 255).to(torch.uint8)


def make_batch(sizes=SIZES):
    heights, widths = map(torch.tensor, zip(*sizes, strict=True))
    frames = torch.zeros(len(sizes), 8, max(heights), max(widths), 3, dtype=torch.uint8)
    for clip, (height, width) in enumerate(sizes):
        for frame in range(8):
            frames[clip, frame, :height, :width] = make_image(height, width, clip + 0.3 * frame)
    waveform = (3000 * torch.randn(len(sizes), 16_000)).to(torch.int16)
    return ClipBatch(frames, heights, widths, waveform)


def rows_of(batch, rows):
    return ClipBatch(*(values[rows] for values in batch))


@cache
def parameters_of(num_clips, config=CONFIG, epoch=0):
    ids = [f"clip {clip}" for clip in range(num_clips)]
    return draw_view_parameters(ids, [epoch] * num_clips, 0, config)


def video_by_torchvision(batch, clip, view, num_frames, size):
    """The same view with torchvision's own functions, one clip at a time."""
    crops = resolve_crops(view, batch.heights, batch.widths, CONFIG.views.crop_ratio)
    start = int(view.start[clip])
    video = batch.frames[clip, start : start + num_frames].permute(0, 3, 1, 2).float() / 255
    video = tvf.resized_crop(
        video, *(int(values[clip]) for values in crops), [size, size], antialias=True
    )
    if view.flip[clip]:
        video = tvf.horizontal_flip(video)
    for number in view.color_order[clip].tolist():
        video = TORCHVISION_JITTER[number](video, view.color_factors[clip, number].item())
    if view.gray[clip]:
        video = tvf.rgb_to_grayscale(video, 3)
    if view.blur_sigma[clip, 0] > 0:
        kernel = size // 20 * 2 + 1
        vertical, horizontal = view.blur_sigma[clip].tolist()
        video = tvf.gaussian_blur(video, [kernel, kernel], [horizontal, vertical])
    return video.transpose(0, 1)


@pytest.mark.parametrize("as_on_a_gpu", [False, True])
def test_video_views_are_torchvisions(monkeypatch, as_on_a_gpu):
    if as_on_a_gpu:  # several clips at once, whole frames
        monkeypatch.setattr(video_views, "CPU_CHUNK_CLIPS", 4)
        monkeypatch.setattr(video_views, "_support", lambda matrix: (0, matrix.shape[2]))
    batch, log_mel = make_batch(), LogMel(AUDIO)
    for epoch in range(3):
        parameters = parameters_of(len(SIZES), epoch=epoch)
        views = make_views(batch, parameters, CONFIG, log_mel)
        made = [(parameters.video_globals[0], denormalize_video(views.video_global), 8, 32)]
        for view, video in zip(parameters.video_locals, views.video_locals, strict=True):
            made.append((view, denormalize_video(video), 4, 24))
        for view, video, num_frames, size in made:
            for clip in range(len(SIZES)):
                expected = video_by_torchvision(batch, clip, view, num_frames, size)
                torch.testing.assert_close(video[clip], expected, atol=1e-2 / 255, rtol=0)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True), st.integers(0, 3))
def test_a_clips_views_do_not_depend_on_its_batch(clips, epoch):
    batch, log_mel = make_batch(), LogMel(AUDIO)
    ids = [f"clip {clip}" for clip in clips]
    together = make_views(
        rows_of(batch, clips),
        draw_view_parameters(ids, [epoch] * len(ids), 0, CONFIG),
        CONFIG,
        log_mel,
    )
    height, width = SIZES[clips[-1]]
    alone = rows_of(batch, clips[-1:])
    alone = alone._replace(frames=alone.frames[:, :, :height, :width])
    parameters = draw_view_parameters(ids[-1:], [epoch], 0, CONFIG)
    single = make_views(alone, parameters, CONFIG, log_mel)
    for name, view in single._asdict().items():
        whole = getattr(together, name)
        last = whole[:, -1:] if name.endswith("locals") else whole[-1:]
        torch.testing.assert_close(last, view, atol=1e-5, rtol=0, msg=name)


def test_padding_is_never_seen():
    batch, log_mel = make_batch(), LogMel(AUDIO)
    loud = batch.frames.clone()
    for clip, (height, width) in enumerate(SIZES):
        loud[clip, :, height:] = 255
        loud[clip, :, :, width:] = 255
    parameters = parameters_of(len(SIZES))
    for one, other in zip(
        make_views(batch, parameters, CONFIG, log_mel),
        make_views(batch._replace(frames=loud), parameters, CONFIG, log_mel),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_views_have_the_sizes_of_the_model():
    batch = make_batch(((20, 30), (40, 25)))
    views = make_views(batch, parameters_of(2), CONFIG, LogMel(AUDIO))
    assert views.video_global.shape == (2, 3, 8, 32, 32)
    assert views.video_locals.shape == (2, 2, 3, 4, 24, 24)
    assert views.audio_global.shape == (2, 1, 80, 112)
    assert views.audio_locals.shape == (2, 2, 1, 80, 56)
    assert views.video_mask_noise.shape == (2, VIDEO.num_tokens)
    assert views.audio_mask_noise.shape == (2, AUDIO.num_tokens)
    assert all(view.dtype == torch.float32 for view in views)


def test_further_global_views_follow_the_first_and_move_no_other_draw():
    views = ViewsConfig(
        num_video_globals=2, num_audio_globals=3, num_video_locals=2, num_audio_locals=2
    )
    config = MethodConfig(model=CONFIG.model, views=views)
    batch, log_mel = make_batch(((20, 30), (40, 25))), LogMel(AUDIO)
    single = make_views(batch, parameters_of(2), CONFIG, log_mel)
    several = make_views(batch, parameters_of(2, config), config, log_mel)
    assert several.video_global.shape == (4, 3, 8, 32, 32)
    assert several.audio_global.shape == (6, 1, 80, 112)
    assert several.video_mask_noise.shape == (4, VIDEO.num_tokens)
    assert several.audio_mask_noise.shape == (6, AUDIO.num_tokens)
    for name, view in single._asdict().items():
        assert torch.equal(getattr(several, name)[: len(view)], view), name
    for view in several:
        halves = view.unflatten(0, (-1, 2)) if len(view) > 2 else view
        assert all(not torch.equal(halves[0], later) for later in halves[1:])


def test_autocast_changes_nothing():
    batch, log_mel = make_batch(((20, 30),)), LogMel(AUDIO)
    expected = make_views(batch, parameters_of(1), CONFIG, log_mel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = make_views(batch, parameters_of(1), CONFIG, log_mel)
    for one, other in zip(views, expected, strict=True):
        assert torch.equal(one, other)


def test_sound_of_views_is_windowed_and_scaled_before_the_spectrogram():
    batch, log_mel = make_batch(), LogMel(AUDIO)
    parameters = parameters_of(len(SIZES))
    views = make_views(batch, parameters, CONFIG, log_mel)
    waveform = batch.waveform / 32_767
    louder = waveform * parameters.audio_globals[0].volume.float().unsqueeze(1)
    torch.testing.assert_close(views.audio_global[:, 0], log_mel(louder))
    for view, spectrograms in zip(parameters.audio_locals, views.audio_locals, strict=True):
        for clip, spectrogram in enumerate(spectrograms):
            start, volume = int(view.start[clip]), view.volume[clip].float()
            window = log_mel(waveform[clip, start : start + 8_000] * volume)
            expected = crop_by_byol_a(window, view.crop_size[clip], view.crop_position[clip])
            torch.testing.assert_close(spectrogram[0], expected, atol=1e-4, rtol=0)


def crop_by_byol_a(spectrogram, size, position):
    num_mels, num_frames = spectrogram.shape
    canvas = torch.zeros(num_mels, num_frames * 3 // 2)
    left = (canvas.shape[1] - num_frames) // 2
    canvas[:, left : left + num_frames] = spectrogram
    height, width = (
        min(max(int(length * share), 1), room)
        for length, share, room in zip(spectrogram.shape, size.tolist(), canvas.shape, strict=True)
    )
    row = int(position[0] * (canvas.shape[0] - height + 1))
    column = int(position[1] * (canvas.shape[1] - width + 1))
    crop = canvas[None, None, row : row + height, column : column + width]
    return F.interpolate(crop, (num_mels, num_frames), mode="bicubic", align_corners=True)[0, 0]


def draw_crops(height, width, config=CONFIG, num_clips=4000, local=False):
    parameters = parameters_of(num_clips, config)
    view = parameters.video_locals[0] if local else parameters.video_globals[0]
    heights, widths = torch.full((num_clips,), height), torch.full((num_clips,), width)
    return resolve_crops(view, heights, widths, config.views.crop_ratio)


@given(st.integers(1, 300), st.integers(1, 300))
def test_crops_lie_inside_of_the_frame(height, width):
    crops = draw_crops(height, width, num_clips=50)
    assert (crops.top >= 0).all()
    assert (crops.left >= 0).all()
    assert (crops.height >= 1).all()
    assert (crops.width >= 1).all()
    assert (crops.top + crops.height <= height).all()
    assert (crops.left + crops.width <= width).all()


@pytest.mark.parametrize(("local", "low", "high"), [(False, 0.2, 1.0), (True, 0.08, 0.4)])
def test_crops_have_the_areas_and_ratios_of_the_method(local, low, high):
    crops = draw_crops(400, 500, local=local)
    area = (crops.height * crops.width) / (400 * 500)
    ratio = crops.width / crops.height
    assert low - 0.01 < area.min() < low + 0.01
    assert area.max() < high + 0.01
    assert 3 / 4 - 0.02 < ratio.min() < 3 / 4 + 0.02
    assert 4 / 3 - 0.02 < ratio.max() < 4 / 3 + 0.02
    if local:  # everything fits, so nothing is thrown away
        assert abs(ratio.log().mean()) < 0.02
        assert abs(area.mean() - 0.24) < 0.01


def test_crops_are_drawn_as_torchvision_draws_them():
    frame = torch.zeros(3, 120, 90)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(frame, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    ).double()
    ours = torch.stack(draw_crops(120, 90), dim=1).double()
    error = (theirs.var(dim=0) / 4000 + ours.var(dim=0) / 4000).sqrt()
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() < 5 * error).all()
    torch.testing.assert_close(ours.std(dim=0), theirs.std(dim=0), atol=0, rtol=0.07)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10)), (50, 60, (0, 0, 50, 60))],
)
def test_without_a_fitting_proposal_the_central_rectangle_is_taken(height, width, expected):
    views = ViewsConfig(global_crop_area=Range(low=1.5, high=2.0))
    crops = draw_crops(height, width, MethodConfig(views=views), num_clips=3)
    assert torch.stack(crops, dim=1).tolist() == [list(expected)] * 3


def test_plain_views_show_the_central_square_and_all_of_the_sound():
    batch, log_mel = make_batch(((48, 64), (64, 41))), LogMel(AUDIO)
    video, audio = plain_views(batch, CONFIG, log_mel)
    wide = batch.frames[0, :, :48, 8:56].permute(0, 3, 1, 2).float() / 255
    expected = tvf.resize(wide, [32, 32], antialias=True).transpose(0, 1)
    torch.testing.assert_close(denormalize_video(video[0]), expected, atol=1e-4, rtol=0)
    high = batch.frames[1, :, 11:52, :41].permute(0, 3, 1, 2).float() / 255
    expected = tvf.resize(high, [32, 32], antialias=True).transpose(0, 1)
    torch.testing.assert_close(denormalize_video(video[1]), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(audio[:, 0], log_mel(batch.waveform / 32_767))


def test_plain_views_of_one_modality_are_the_same():
    batch, log_mel = make_batch(((48, 64), (64, 41))), LogMel(AUDIO)
    video, audio = plain_views(batch, CONFIG, log_mel)
    alone = plain_video_view(batch.frames, batch.heights, batch.widths, VIDEO.size)
    assert torch.equal(video, alone)
    assert torch.equal(audio, plain_audio_view(batch.waveform, log_mel))


def test_normalisation_is_undone():
    pixels = torch.rand(2, 3, 4, 5, 5)
    normalized = normalize_video(pixels)
    torch.testing.assert_close(denormalize_video(normalized), pixels)
    red = torch.tensor([0.485, 0.0, 0.0]).view(3, 1, 1, 1)
    assert normalize_video(red).flatten().tolist() == pytest.approx([0.0, -2.0357, -1.8044], 1e-4)


@pytest.mark.gpu
def test_views_are_the_same_on_a_gpu(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(video_views, "CUDA_CHUNK_VALUES", 4 * 8 * 91 * 120 * 3)  # four of six clips
    batch, log_mel = make_batch(), LogMel(AUDIO)
    parameters = parameters_of(len(SIZES))
    expected = make_views(batch, parameters, CONFIG, log_mel)
    on_gpu = ClipBatch(*(values.cuda() for values in batch))
    made = make_views(on_gpu, parameters, CONFIG, log_mel.cuda())
    for name, view in made._asdict().items():
        assert view.is_cuda, name
        torch.testing.assert_close(view.cpu(), getattr(expected, name), atol=1e-3, rtol=1e-3)
    video, audio = plain_views(on_gpu, CONFIG, log_mel)
    plain_video, plain_audio = plain_views(batch, CONFIG, log_mel.cpu())
    torch.testing.assert_close(video.cpu(), plain_video, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(audio.cpu(), plain_audio, atol=1e-3, rtol=1e-3)


def test_parts_of_a_batch_hold_all_views_of_their_clips():
    config = CONFIG.model_copy(update={"views": ViewsConfig(num_video_globals=2)})
    batch = make_batch()
    names = [f"clip{i}" for i in range(len(batch.heights))]
    log_mel = LogMel(AUDIO)

    def views_of(part):
        parameters = draw_view_parameters(names[part], [0] * len(names[part]), 0, config)
        clips = ClipBatch(*(tensor[part] for tensor in batch))
        return make_views(clips, parameters, config, log_mel)

    whole = views_of(slice(None))
    for index, part in enumerate(split_views(whole, 2)):
        alone = views_of(slice(3 * index, 3 * index + 3))
        for name, tensor in part._asdict().items():
            torch.testing.assert_close(tensor, getattr(alone, name), msg=name)


def test_the_papers_views_are_made_of_frames_as_small_as_the_published_ones():
    """Short side 112, from which a crop of the whole frame needs no pixel that is not there."""
    config = MethodConfig()
    frames = torch.randint(0, 256, (2, 32, 149, 112, 3), dtype=torch.uint8)
    sides = torch.tensor([149, 140]), torch.tensor([112, 112])
    batch = ClipBatch(frames, *sides, torch.randint(-3000, 3000, (2, 64_000)).to(torch.int16))
    views = make_views(batch, parameters_of(2, config), config, LogMel(config.model.audio))
    assert views.video_global.shape == (2, 3, 32, 112, 112)
    assert views.video_locals.shape == (1, 2, 3, 8, 96, 96)
    for view in (views.video_global, views.video_locals):
        assert view.isfinite().all()
        assert view.std() > 0.1
