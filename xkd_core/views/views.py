"""Global and local views of clips, by batched operations on the device of the batch.

`draw_view_parameters` draws all random numbers before, on the CPU. The views of a clip are a
function of the clip and its parameters, independent of the rest of the batch.

Paper: XKD, section 4; audio crops as in BYOL-A, arXiv:2103.06695.
"""

from typing import NamedTuple

import torch

from xkd_core.config import MethodConfig
from xkd_core.shapes import Float, Int, Int16, Tensor, UInt8
from xkd_core.views.log_mel import LogMel
from xkd_core.views.parameters import (
    AudioViewParameters,
    VideoViewParameters,
    ViewParameters,
    clip_generator,
    draw_view_parameters,
    integer_offset,
)
from xkd_core.views.resampling import bicubic_matrix
from xkd_core.views.transfer import copy_together
from xkd_core.views.video import (
    Chunk,
    denormalize_video,
    normalize_video,
    plain_video_view,
    plan_chunks,
    resolve_crops,
    video_view,
)

__all__ = [
    "ClipBatch",
    "ViewParameters",
    "Views",
    "clip_generator",
    "crop_spectrogram",
    "denormalize_video",
    "draw_view_parameters",
    "make_views",
    "normalize_video",
    "plain_audio_view",
    "plain_video_view",
    "plain_views",
]

LARGEST_SAMPLE = 32_767.0
_LOCAL_AUDIO_CANVAS = 1.5
"""Width of the canvas from which local spectrograms are cropped, relative to their width."""


class ClipBatch(NamedTuple):
    """Clips as stored: pixels and samples as integers."""

    frames: UInt8[Tensor, "B T H W 3"]
    """Padded on the right and below to the largest frame of the batch."""
    heights: Int[Tensor, " B"]
    widths: Int[Tensor, " B"]
    waveform: Int16[Tensor, "B S"]


class Views(NamedTuple):
    """Input of a training step: normalized views and the noise from which masks follow."""

    video_global: Float[Tensor, "GB 3 T H W"]
    """The first global view of all clips, then the second if there is one."""
    video_locals: Float[Tensor, "J B 3 T_local H_local W_local"]
    audio_global: Float[Tensor, "GB_audio 1 M T_audio"]
    audio_locals: Float[Tensor, "J_audio B 1 M T_audio_local"]
    video_mask_noise: Float[Tensor, "GB N_video"]
    """One uniform number a token of a global view; tokens with the lowest stay visible."""
    audio_mask_noise: Float[Tensor, "GB_audio N_audio"]


def split_views(views: Views, num_parts: int) -> list[Views]:
    """Splits a batch into parts with equally many clips, in order."""
    num_clips = views.video_locals.shape[1]
    parts = []
    for name, tensor in views._asdict().items():
        if name.endswith("_locals"):
            parts.append(tensor.chunk(num_parts, dim=1))
        else:
            chunks = tensor.unflatten(0, (-1, num_clips)).chunk(num_parts, dim=1)
            parts.append([chunk.flatten(0, 1) for chunk in chunks])
    return [Views(*tensors) for tensors in zip(*parts, strict=True)]


@torch.no_grad()
def make_views(
    batch: ClipBatch, parameters: ViewParameters, config: MethodConfig, log_mel: LogMel
) -> Views:
    """Computes all views of a batch in float32, on the device of the batch.

    Copies all parameters to the device at once and never synchronizes with it.
    """
    video, audio, device = config.model.video, config.model.audio, batch.frames.device
    global_chunks = tuple(plan_chunks(view, batch.frames) for view in parameters.video_globals)
    local_chunks = tuple(plan_chunks(view, batch.frames) for view in parameters.video_locals)
    parameters, global_chunks, local_chunks = copy_together(
        (parameters, global_chunks, local_chunks), device
    )

    def video_views_of(
        views: tuple[VideoViewParameters, ...],
        chunks: tuple[tuple[Chunk, ...], ...],
        num_frames: int,
        size: int,
    ) -> list[Tensor]:
        return [
            video_view(
                batch.frames,
                resolve_crops(view, batch.heights, batch.widths, config.views.crop_ratio),
                view,
                view_chunks,
                num_frames=num_frames,
                size=size,
            )
            for view, view_chunks in zip(views, chunks, strict=True)
        ]

    def audio_local_of(view: AudioViewParameters) -> Tensor:
        return crop_spectrogram(log_mel(_window(waveform, view, audio.local_num_samples)), view)

    waveform = batch.waveform.float() / LARGEST_SAMPLE
    with torch.autocast(device.type, enabled=False):
        return Views(
            video_global=torch.cat(
                video_views_of(
                    parameters.video_globals, global_chunks, video.num_frames, video.size
                )
            ),
            video_locals=torch.stack(
                video_views_of(
                    parameters.video_locals, local_chunks, video.local_num_frames, video.local_size
                )
            ),
            audio_global=torch.cat(
                [
                    log_mel(_window(waveform, view, audio.num_samples))
                    for view in parameters.audio_globals
                ]
            ).unsqueeze(1),
            audio_locals=torch.stack(
                [audio_local_of(view) for view in parameters.audio_locals]
            ).unsqueeze(2),
            video_mask_noise=parameters.video_mask_noise,
            audio_mask_noise=parameters.audio_mask_noise,
        )


@torch.no_grad()
def plain_views(
    batch: ClipBatch, config: MethodConfig, log_mel: LogMel
) -> tuple[Float[Tensor, "B 3 T H_out W_out"], Float[Tensor, "B 1 M T_audio"]]:
    """Computes the views for evaluation: the central square and the whole sound, without jitter."""
    video = plain_video_view(batch.frames, batch.heights, batch.widths, config.model.video.size)
    return video, plain_audio_view(batch.waveform, log_mel)


@torch.no_grad()
def plain_audio_view(
    waveform: Int16[Tensor, "B S"], log_mel: LogMel
) -> Float[Tensor, "B 1 M T_audio"]:
    """Computes the view for evaluation: the spectrogram of the whole sound."""
    return log_mel(waveform.float() / LARGEST_SAMPLE).unsqueeze(1)


def _window(
    waveform: Float[Tensor, "B S"], view: AudioViewParameters, num_samples: int
) -> Float[Tensor, "B num_samples"]:
    """Takes a window of each waveform and scales its volume."""
    if num_samples < waveform.shape[1]:
        offset = torch.arange(num_samples, device=waveform.device)
        waveform = waveform.gather(1, view.start.unsqueeze(1) + offset)
    return waveform * view.volume.float().unsqueeze(1)


def crop_spectrogram(
    spectrogram: Float[Tensor, "B M T"], view: AudioViewParameters
) -> Float[Tensor, "B M T"]:
    """Crops a spectrogram on a wider canvas of zeros and resizes the crop to the original size.

    |000| spectrogram |000|     canvas, 1.5 times as wide
         |--- crop ---|         resized to the size of the spectrogram
    """
    M, T = spectrogram.shape[1:]
    canvas_width = int(T * _LOCAL_AUDIO_CANVAS)
    over_bins = _crop_matrix(view, 0, length=M, room=M)
    over_frames = _crop_matrix(view, 1, length=T, room=canvas_width)
    # Columns of the canvas outside the spectrogram are zero and need no product.
    first = (canvas_width - T) // 2
    return over_bins @ spectrogram @ over_frames[:, :, first : first + T].mT


def _crop_matrix(
    view: AudioViewParameters, axis: int, *, length: int, room: int
) -> Float[Tensor, "B length room"]:
    """Builds matrices that crop a share of `length` out of `room` and resize it to `length`."""
    taken = (view.crop_size[:, axis] * length).long().clamp(min=1, max=room)
    start = integer_offset(view.crop_position[:, axis], room - taken)
    return bicubic_matrix(start, taken, input_size=room, output_size=length)
