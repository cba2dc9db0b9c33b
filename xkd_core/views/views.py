"""Global and local views of clips: batched tensor operations on whatever device the batch is.

Nothing is drawn here: `draw_view_parameters` draws on the CPU, before, and a clip's views are a
function of the clip and its parameters, whatever else is in the batch.

Paper: XKD, section 4; crops of sound as in BYOL-A, arXiv:2103.06695.
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
    place,
)
from xkd_core.views.resampling import bicubic_matrix
from xkd_core.views.video import (
    denormalize_video,
    normalize_video,
    plain_video_view,
    resolve_crops,
    video_view,
)

__all__ = [
    "ClipBatch",
    "ViewParameters",
    "Views",
    "clip_generator",
    "denormalize_video",
    "draw_view_parameters",
    "make_views",
    "normalize_video",
    "plain_audio_view",
    "plain_video_view",
    "plain_views",
]

LARGEST_SAMPLE = 32_767.0
LOCAL_AUDIO_CANVAS = 1.5
"""Width of the canvas on which a local spectrogram is cropped, in widths of the spectrogram."""


class ClipBatch(NamedTuple):
    """Clips as they are stored: bytes of pixels and samples, nothing drawn yet."""

    frames: UInt8[Tensor, "B T H W 3"]
    """Padded on the right and below to the largest frame of the batch."""
    heights: Int[Tensor, " B"]
    widths: Int[Tensor, " B"]
    waveform: Int16[Tensor, "B S"]


class Views(NamedTuple):
    """What one training step sees of a batch: normalised views and the noise that draws masks."""

    video_global: Float[Tensor, "GB 3 T H W"]
    """The first global view of all clips; where there are more, then the second of all clips."""
    video_locals: Float[Tensor, "J B 3 T_local H_local W_local"]
    audio_global: Float[Tensor, "GB_audio 1 M T_audio"]
    audio_locals: Float[Tensor, "J_audio B 1 M T_audio_local"]
    video_mask_noise: Float[Tensor, "GB N_video"]
    """A uniform number per token of a global view; the tokens with the lowest stay visible."""
    audio_mask_noise: Float[Tensor, "GB_audio N_audio"]


def split_views(views: Views, num_parts: int) -> list[Views]:
    """Cuts a batch into parts of equally many clips, in order."""
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
    """Makes all views of a batch, on the batch's device and in float32."""
    video, audio, device = config.model.video, config.model.audio, batch.frames.device

    def video_view_of(view: VideoViewParameters, num_frames: int, size: int) -> Tensor:
        on_device = VideoViewParameters(*(values.to(device) for values in view))
        crops = resolve_crops(on_device, batch.heights, batch.widths, config.views.crop_ratio)
        return video_view(batch.frames, crops, view, num_frames=num_frames, size=size)

    waveform = batch.waveform / LARGEST_SAMPLE
    with torch.autocast(device.type, enabled=False):
        return Views(
            video_global=torch.cat(
                [
                    video_view_of(view, video.num_frames, video.size)
                    for view in parameters.video_globals
                ]
            ),
            video_locals=torch.stack(
                [
                    video_view_of(view, video.local_num_frames, video.local_size)
                    for view in parameters.video_locals
                ]
            ),
            audio_global=torch.cat(
                [
                    log_mel(_window(waveform, view, audio.num_samples))
                    for view in parameters.audio_globals
                ]
            ).unsqueeze(1),
            audio_locals=torch.stack(
                [
                    _crop(log_mel(_window(waveform, view, audio.local_num_samples)), view)
                    for view in parameters.audio_locals
                ]
            ).unsqueeze(2),
            video_mask_noise=parameters.video_mask_noise.to(device),
            audio_mask_noise=parameters.audio_mask_noise.to(device),
        )


@torch.no_grad()
def plain_views(
    batch: ClipBatch, config: MethodConfig, log_mel: LogMel
) -> tuple[Float[Tensor, "B 3 T H_out W_out"], Float[Tensor, "B 1 M T_audio"]]:
    """Makes the views of evaluation: the largest central square and the whole sound, no jitter."""
    video = plain_video_view(batch.frames, batch.heights, batch.widths, config.model.video.size)
    return video, plain_audio_view(batch.waveform, log_mel)


@torch.no_grad()
def plain_audio_view(
    waveform: Int16[Tensor, "B S"], log_mel: LogMel
) -> Float[Tensor, "B 1 M T_audio"]:
    """Makes the view of evaluation: the spectrogram of the whole sound."""
    return log_mel(waveform / LARGEST_SAMPLE).unsqueeze(1)


def _window(
    waveform: Float[Tensor, "B S"], view: AudioViewParameters, num_samples: int
) -> Float[Tensor, "B num_samples"]:
    """Cuts a window out of each waveform and changes its volume."""
    if num_samples < waveform.shape[1]:
        index = view.start.unsqueeze(1) + torch.arange(num_samples)
        waveform = waveform.gather(1, index.to(waveform.device))
    return waveform * view.volume.float().to(waveform.device).unsqueeze(1)


def _crop(spectrogram: Float[Tensor, "B M T"], view: AudioViewParameters) -> Float[Tensor, "B M T"]:
    """Crops a spectrogram on a wider canvas of zeros and resizes the crop to its own size."""
    device, (M, T) = spectrogram.device, spectrogram.shape[1:]
    canvas_width = int(T * LOCAL_AUDIO_CANVAS)
    room = torch.tensor((M, canvas_width))
    length = (view.crop_size * torch.tensor((M, T))).long().clamp(min=1).minimum(room)
    start = place(view.crop_position, room - length).to(device)
    length = length.to(device)
    over_bins = bicubic_matrix(start[:, 0], length[:, 0], input_size=M, output_size=M)
    over_frames = bicubic_matrix(start[:, 1], length[:, 1], input_size=canvas_width, output_size=T)
    # Outside of the spectrogram the canvas is zero, so its columns there add nothing.
    first = (canvas_width - T) // 2
    return over_bins @ spectrogram @ over_frames[:, :, first : first + T].mT
