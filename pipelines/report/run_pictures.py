"""Pictures of a run's report: reconstructions, attention and thumbnails of a few clips."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.config.evaluate import EvaluateSettings
from pipelines.config.pretrain import PretrainConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.evaluation.alignment import common_space
from pipelines.evaluation.embedder import padded_frames
from pipelines.evaluation.features import Features
from pipelines.evaluation.retrieval import directions
from pipelines.media.windows import audio_windows, video_windows
from pipelines.report import run_data
from xkd_core.encoders import MODALITIES
from xkd_core.masking import random_mask, video_mask_noise
from xkd_core.reconstruction import reconstruct_audio, reconstruct_video
from xkd_core.views.log_mel import LogMel
from xkd_core.views.parameters import clip_generator
from xkd_core.views.video import denormalize_video
from xkd_core.views.views import ClipBatch, plain_views
from xkd_core.xkd import XKD

Array = NDArray[Any]
_NUM_QUERIES = 4
_NUM_NEIGHBORS = 5
_DIRECTIONS: tuple[tuple[Literal["audio_to_video", "video_to_audio"], str, str], ...] = (
    ("audio_to_video", "audio", "video"),
    ("video_to_audio", "video", "audio"),
)


class Pictures:
    """Reconstructions and attention of a few clips."""

    def __init__(
        self,
        model: XKD,
        config: PretrainConfig,
        dataset: ClipDataset,
        features: Features,
        shown: Sequence[int],
    ) -> None:
        self._model, self._config, self._seed = model, config, config.seed
        self._titles = [_title(features, clip) for clip in shown]
        self._ids = [features.clip_ids[clip] for clip in shown]
        if shown:
            batch = _middle_windows(dataset, config, features.rows[list(shown)])
            self._video, self._audio = plain_views(batch, config, LogMel(config.model.audio))

    def reconstructions(self) -> list[run_data.Reconstruction]:
        """Returns the clips, their hidden tokens and the students' reconstructions."""
        if not self._ids:
            return []
        video = self._config.model.video
        video_noise = video_mask_noise(self._noise(video.num_tokens), video)
        audio_noise = self._noise(self._config.model.audio.num_tokens)
        filled_video = reconstruct_video(self._model, self._video, video_noise)
        filled_audio = reconstruct_audio(self._model, self._audio, audio_noise)
        video_hidden = random_mask(video_noise, self._model.num_visible_video).hidden
        audio_hidden = random_mask(audio_noise, self._model.num_visible_audio).hidden
        return [
            run_data.Reconstruction(
                title=title,
                frames=_pixels(self._video[i]),
                frames_hidden=video_hidden[i].reshape(video.grid).numpy(),
                frames_filled=_pixels(filled_video[i]),
                spectrogram=self._audio[i, 0].numpy(),
                spectrogram_hidden=audio_hidden[i].reshape(self._config.model.audio.grid).numpy(),
                spectrogram_filled=filled_audio[i, 0].numpy(),
            )
            for i, title in enumerate(self._titles)
        ]

    @torch.no_grad()
    def attention(self) -> list[run_data.Attention]:
        """Returns the attention of the teachers' CLS tokens, averaged over heads."""
        if not self._ids:
            return []
        _, video = self._model.video_teacher.tokens_and_attention(self._video)
        _, audio = self._model.audio_teacher.tokens_and_attention(self._audio)
        return [
            run_data.Attention(
                title=title,
                frames=_pixels(self._video[i]),
                frames_attention=video[i].mean(0).reshape(self._config.model.video.grid).numpy(),
                spectrogram=self._audio[i, 0].numpy(),
                spectrogram_attention=audio[i]
                .mean(0)
                .reshape(self._config.model.audio.grid)
                .numpy(),
            )
            for i, title in enumerate(self._titles)
        ]

    def _noise(self, num_tokens: int) -> torch.Tensor:
        draws = [
            clip_generator(self._seed, 0, name, "report").random(num_tokens) for name in self._ids
        ]
        return torch.from_numpy(np.stack(draws)).float()


def _title(features: Features, clip: int) -> str:
    label = features.labels[clip]
    name = features.clip_ids[clip][:12]
    return f"{features.classes[label]} ({name})" if label >= 0 else name


def _pixels(video: torch.Tensor) -> Array:
    """Converts a normalized view (3, T, H, W) to uint8 frames (T, H, W, 3)."""
    shown = denormalize_video(video[None])[0].clamp(0, 1) * 255
    return shown.round().byte().permute(1, 2, 3, 0).numpy()


class Thumbnails:
    """Makes a frame or a spectrogram that stands for a clip."""

    def __init__(self, dataset: ClipDataset, config: PretrainConfig, features: Features) -> None:
        self._dataset, self._config, self._features = dataset, config, features
        self._log_mel = LogMel(config.model.audio)

    def make(
        self,
        modality: str,
        clip: int,
        *,
        similarity: float | None = None,
        is_same_clip: bool = False,
    ) -> run_data.Neighbor:
        """Returns the middle frame or the spectrogram of a clip."""
        batch = _middle_windows(self._dataset, self._config, self._features.rows[[clip]])
        video, audio = plain_views(batch, self._config, self._log_mel)
        pixels = _pixels(video[0])
        label = self._features.labels[clip]
        return run_data.Neighbor(
            image=pixels[len(pixels) // 2] if modality == "video" else audio[0, 0].numpy(),
            label=self._features.classes[label] if label >= 0 else "",
            similarity=similarity,
            is_same_clip=is_same_clip,
        )


def galleries(
    dataset: ClipDataset,
    config: PretrainConfig,
    features: Features,
    settings: EvaluateSettings,
) -> list[run_data.Retrieval]:
    """Finds the nearest videos of a few audio clips and the reverse, as retrieval is measured.

    Without more clips than a gallery shows, or a common space, there are none.
    """
    clips = features.retrieval_clips
    space = common_space(features, settings)
    paths = [f"{modality}/trained" for modality in MODALITIES]
    if len(clips) <= _NUM_NEIGHBORS or not set(paths) <= space.keys():
        return []
    video, audio = (directions(space[path]) for path in paths)
    queries = np.linspace(0, len(clips) - 1, _NUM_QUERIES).astype(int)
    similarity = {"audio_to_video": audio @ video.T, "video_to_audio": video @ audio.T}
    thumbnails = Thumbnails(dataset, config, features)
    retrievals = []
    for direction, asked, found in _DIRECTIONS:
        for query in queries.tolist():
            nearest = np.argsort(-similarity[direction][query], kind="stable")[:_NUM_NEIGHBORS]
            retrievals.append(
                run_data.Retrieval(
                    direction=direction,
                    query=thumbnails.make(asked, int(clips[query])),
                    neighbors=[
                        thumbnails.make(
                            found,
                            int(clips[near]),
                            similarity=float(similarity[direction][query, near]),
                            is_same_clip=near == query,
                        )
                        for near in nearest.tolist()
                    ],
                )
            )
    return retrievals


def _middle_windows(dataset: ClipDataset, config: PretrainConfig, rows: Array) -> ClipBatch:
    """Reads the middle windows of clips that have video and audio."""
    frames, waveforms = [], []
    for clip in dataset.clips(rows):
        assert clip.frames is not None
        assert clip.waveform is not None
        frames += video_windows(clip.frames, config.model.video.num_frames, 1)
        waveforms += audio_windows(clip.waveform, config.model.audio.num_samples, 1)
    stacked, heights, widths = padded_frames(frames)
    return ClipBatch(stacked, heights, widths, torch.from_numpy(np.stack(waveforms)))
