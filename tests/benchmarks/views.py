"""How fast are the batched views, against torchvision's transforms clip by clip?

    python tests/benchmarks/views.py [--batches 1 16] [--repeats 7] [--threads 1] [--height 128]
        [--width 170]

Clips of smooth noise, 32 frames of bytes and 4 s of sound, become the paper's views: crop and
resize, flip, jitter, gray, blur, normalise. torchvision does it in two ways: its functions on
floats with the parameters that ours has, which must give the same pixels, and its v2 transforms on
bytes, as their documentation advises, with draws of their own and rounding after each operation.
Spectrograms are compared with torchaudio's, clip by clip. Our drawing is counted by itself, that of
v2 is part of it. Seconds are CPU seconds, of one thread unless more are given; ways take turns.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from xkd_core.config import AudioConfig, MethodConfig
from xkd_core.views.log_mel import LOG_FLOOR, LogMel
from xkd_core.views.parameters import ViewParameters, draw_view_parameters
from xkd_core.views.video import (
    VIDEO_MEAN,
    VIDEO_STD,
    plan_chunks,
    resolve_crops,
    video_view,
)
from xkd_core.views.views import LARGEST_SAMPLE, ClipBatch, make_views

CONFIG = MethodConfig()
JITTER = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue)
OURS, FLOATS, BYTES = "ours", "floats", "v2 on bytes"
LARGEST_DIFFERENCE = 0.05 / 255
"""Between two float ways to one view, in pixels of 0 to 1."""


class OneByOne:
    """The views as a loader makes them of one clip after the other."""

    def __init__(self, audio: AudioConfig) -> None:
        self.audio = audio
        views, video = CONFIG.views, CONFIG.model.video
        ratio = (views.crop_ratio.low, views.crop_ratio.high)
        jitter = v2.ColorJitter(views.brightness, views.contrast, views.saturation, views.hue)
        finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(VIDEO_MEAN, VIDEO_STD)]

        def crop(size: int, area: tuple[float, float]) -> v2.Transform:
            return v2.RandomResizedCrop(size, scale=area, ratio=ratio, antialias=True)

        global_area, local_area = views.global_crop_area, views.local_crop_area
        flip = v2.RandomHorizontalFlip(views.flip_probability)
        self.make_global = v2.Compose(
            [crop(video.size, (global_area.low, global_area.high)), flip, jitter, *finish]
        )
        blur = v2.GaussianBlur(video.local_size // 20 * 2 + 1, (0.1, 2.0))
        self.make_local = v2.Compose(
            [
                crop(video.local_size, (local_area.low, local_area.high)),
                flip,
                jitter,
                v2.RandomGrayscale(views.local_gray_probability),
                v2.RandomApply([blur], views.local_blur_probability),
                *finish,
            ]
        )
        self.spectrogram = torchaudio.transforms.MelSpectrogram(
            sample_rate=audio.sample_rate,
            n_fft=audio.n_fft,
            hop_length=audio.hop_length,
            n_mels=audio.num_mels,
            norm="slaney",
            mel_scale="slaney",
        )

    def bytes_global(self, batch: ClipBatch, _: ViewParameters) -> Tensor:
        return self._transform(batch, self.make_global, CONFIG.model.video.num_frames)

    def bytes_local(self, batch: ClipBatch, _: ViewParameters) -> Tensor:
        return self._transform(batch, self.make_local, CONFIG.model.video.local_num_frames)

    def _transform(self, batch: ClipBatch, transform: v2.Compose, num_frames: int) -> Tensor:
        made = []
        for frames in batch.frames:
            start = int(torch.randint(len(frames) - num_frames + 1, ()))
            clip = tv_tensors.Video(frames[start : start + num_frames].permute(0, 3, 1, 2))
            made.append(transform(clip).transpose(0, 1))
        return torch.stack(made)

    def floats_global(self, batch: ClipBatch, parameters: ViewParameters) -> Tensor:
        view, video = parameters.video_globals[0], CONFIG.model.video
        return self._functions(batch, view, video.num_frames, video.size)

    def floats_local(self, batch: ClipBatch, parameters: ViewParameters) -> Tensor:
        view, video = parameters.video_locals[0], CONFIG.model.video
        return self._functions(batch, view, video.local_num_frames, video.local_size)

    def _functions(self, batch: ClipBatch, view, num_frames: int, size: int) -> Tensor:
        crops = resolve_crops(view, batch.heights, batch.widths, CONFIG.views.crop_ratio)
        made = []
        for clip in range(len(batch.frames)):
            start = int(view.start[clip])
            frames = batch.frames[clip, start : start + num_frames].permute(0, 3, 1, 2)
            pixels = tvf.to_dtype(frames, torch.float32, scale=True)
            corner = (int(values[clip]) for values in crops)
            pixels = tvf.resized_crop(pixels, *corner, [size, size], antialias=True)
            if view.flip[clip]:
                pixels = tvf.horizontal_flip(pixels)
            for number in view.color_order[clip].tolist():
                pixels = JITTER[number](pixels, view.color_factors[clip, number].item())
            if view.gray[clip]:
                pixels = tvf.rgb_to_grayscale(pixels, 3)
            if view.blur_sigma[clip, 0] > 0:
                kernel = size // 20 * 2 + 1
                vertical, horizontal = view.blur_sigma[clip].tolist()
                pixels = tvf.gaussian_blur(pixels, [kernel, kernel], [horizontal, vertical])
            made.append(tvf.normalize(pixels, list(VIDEO_MEAN), list(VIDEO_STD)).transpose(0, 1))
        return torch.stack(made)

    def spectrograms(self, batch: ClipBatch, _: ViewParameters) -> list[Tensor]:
        pairs = [[self._log_mel(sound) for sound in sounds(samples)] for samples in batch.waveform]
        return [torch.stack(spectrograms) for spectrograms in zip(*pairs, strict=True)]

    def _log_mel(self, waveform: Tensor) -> Tensor:
        log_mel = (self.spectrogram(waveform) + LOG_FLOOR).log()
        return (log_mel - self.audio.mean) / self.audio.std


class Batched:
    """Ours, one kind of view at a time."""

    def __init__(self, log_mel: LogMel) -> None:
        self.log_mel = log_mel

    def video_global(self, batch: ClipBatch, parameters: ViewParameters) -> Tensor:
        view, video = parameters.video_globals[0], CONFIG.model.video
        crops = resolve_crops(view, batch.heights, batch.widths, CONFIG.views.crop_ratio)
        chunks = plan_chunks(view, batch.frames)
        num_frames, size = video.num_frames, video.size
        return video_view(batch.frames, crops, view, chunks, num_frames=num_frames, size=size)

    def video_local(self, batch: ClipBatch, parameters: ViewParameters) -> Tensor:
        view, video = parameters.video_locals[0], CONFIG.model.video
        crops = resolve_crops(view, batch.heights, batch.widths, CONFIG.views.crop_ratio)
        chunks = plan_chunks(view, batch.frames)
        num_frames, size = video.local_num_frames, video.local_size
        return video_view(batch.frames, crops, view, chunks, num_frames=num_frames, size=size)

    def spectrograms(self, batch: ClipBatch, _: ViewParameters) -> list[Tensor]:
        return [self.log_mel(sound) for sound in sounds(batch.waveform)]

    def all_views(self, batch: ClipBatch, parameters: ViewParameters):
        return make_views(batch, parameters, CONFIG, self.log_mel)


@torch.no_grad()
def main() -> None:
    """Prints tables, and one JSON line last."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    results = []
    for size in options.batches:
        row = measure(size, options)
        report(size, row)
        results.append({"batch": size, "seconds": row})
    print(json.dumps({"benchmark": "views", **machine(options), "results": results}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--height", type=int, default=128, help="of a frame as it is stored")
    parser.add_argument("--width", type=int, default=170)
    return parser.parse_args()


def clips(size: int, height: int, width: int) -> ClipBatch:
    """Blurred noise as the feed gives it."""
    video, audio = CONFIG.model.video, CONFIG.model.audio
    noise = 255 * torch.rand(size * video.num_frames, 3, height // 8, width // 8)
    frames = F.interpolate(noise, size=(height, width), mode="bilinear").to(torch.uint8)
    frames = frames.unflatten(0, (size, -1)).permute(0, 1, 3, 4, 2).contiguous()
    samples = torch.randint(-9000, 9000, (size, audio.num_samples), dtype=torch.int16)
    return ClipBatch(frames, torch.full((size,), height), torch.full((size,), width), samples)


def sounds(samples: Tensor) -> tuple[Tensor, Tensor]:
    """All samples, and as many as a local view has."""
    waveform = samples / LARGEST_SAMPLE
    return waveform, waveform[..., : CONFIG.model.audio.local_num_samples]


def draw(size: int, epoch: int) -> ViewParameters:
    ids = [f"clip-{number}" for number in range(size)]
    return draw_view_parameters(ids, [epoch] * size, 0, CONFIG)


def measure(size: int, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """CPU seconds of a batch by kind of view and way; each turn has parameters of its own."""
    batch = clips(size, options.height, options.width)
    one_by_one, batched = OneByOne(CONFIG.model.audio), Batched(LogMel(CONFIG.model.audio))
    kinds: dict[str, dict[str, Callable[[ClipBatch, ViewParameters], object]]] = {
        "video, global": {
            OURS: batched.video_global,
            FLOATS: one_by_one.floats_global,
            BYTES: one_by_one.bytes_global,
        },
        "video, local": {
            OURS: batched.video_local,
            FLOATS: one_by_one.floats_local,
            BYTES: one_by_one.bytes_local,
        },
        "log-mel, global and local": {
            OURS: batched.spectrograms,
            FLOATS: one_by_one.spectrograms,
        },
        "drawing": {OURS: lambda *_: draw(size, 0)},
        "all": {OURS: batched.all_views},
    }
    check_same(batch, draw(size, 0), batched, one_by_one)
    seconds = {kind: {way: [] for way in ways} for kind, ways in kinds.items()}
    for turn in range(options.repeats + 1):
        parameters = draw(size, turn)
        for kind, ways in kinds.items():
            for way, make in ways.items():
                begun = time.process_time()
                make(batch, parameters)
                if turn:
                    seconds[kind][way].append(time.process_time() - begun)
    return seconds


def check_same(
    batch: ClipBatch, parameters: ViewParameters, batched: Batched, one_by_one: OneByOne
) -> None:
    """The ways that share parameters make the same views."""
    largest = LARGEST_DIFFERENCE / min(VIDEO_STD)
    for ours, theirs, tolerance in (
        (batched.video_global, one_by_one.floats_global, largest),
        (batched.video_local, one_by_one.floats_local, largest),
        (batched.spectrograms, one_by_one.spectrograms, 1e-3),
    ):
        pair = (make(batch, parameters) for make in (ours, theirs))
        torch.testing.assert_close(*pair, atol=tolerance, rtol=0)


def report(size: int, seconds: dict[str, dict[str, list[float]]]) -> None:
    print(f"batch {size}: CPU ms a clip, and times ours")
    for kind, ways in seconds.items():
        line = f"{kind:26}"
        for way, values in ways.items():
            ratios = [a / b for a, b in zip(values, ways[OURS], strict=True)]
            line += f"  {way} {1e3 * statistics.median(values) / size:7.2f}"
            if way != OURS:
                line += f" ({statistics.median(ratios):.2f} x, "
                line += f"{min(ratios):.2f} to {max(ratios):.2f})"
        print(line, flush=True)


def machine(options: argparse.Namespace) -> dict[str, object]:
    return {
        "frame": [options.height, options.width],
        "device": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        **{name: version(name) for name in ("torch", "torchvision", "torchaudio")},
    }


if __name__ == "__main__":
    main()
