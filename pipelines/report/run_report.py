"""What a run's report shows, gathered from its stages: curves, scores, pictures of what was learnt.

Pictures are made of held-out clips in the driver; there are few of them.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from pipelines.config.pretrain import PretrainConfig
from pipelines.config.run import RunConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.evaluation.evaluate import MODALITIES, Evaluation
from pipelines.evaluation.features import Features, load_model, padded_frames
from pipelines.ingest.ingest import IngestSummary
from pipelines.media.decode import REASONS
from pipelines.media.windows import audio_windows, video_windows
from pipelines.redaction import redacted
from pipelines.registry.promote import Registered
from pipelines.report import run_data as report_data
from pipelines.report.embedding_map import EmbeddingMap, map_embeddings
from pipelines.report.page import write_report
from pipelines.tracking.tracker import (
    RunRef,
    code_version,
    kept_settings,
    metric_histories,
    warnings_of,
)
from pipelines.training.pretrain import PretrainResult
from xkd_core.masking import random_mask, video_mask_noise
from xkd_core.reconstruction import reconstruct_audio, reconstruct_video
from xkd_core.views.log_mel import LogMel
from xkd_core.views.views import ClipBatch, clip_generator, denormalize_video, plain_views
from xkd_core.xkd import XKD

Array = NDArray[Any]
NUM_CLIPS = 4
"""Clips shown as reconstructions and with attention."""
NUM_QUERIES = 4
NUM_NEIGHBORS = 5
NUM_REJECTS = 50


@dataclass(frozen=True)
class RunRecord:
    """What the stages of a run left."""

    config: RunConfig
    ingest: IngestSummary
    training: PretrainResult
    evaluation: Evaluation
    registered: Sequence[Registered]
    run: RunRef
    seconds: float


def write_run_report(path: Path, record: RunRecord) -> Path:
    """Writes the page of a run."""
    features, scores = record.evaluation.features, record.evaluation.scores
    dataset = ClipDataset.open(str(path.parent / "clips"))
    shown = _shown_clips(features)
    model, config = load_model(record.training.checkpoint)
    pictures = _Pictures(model, config, dataset, features, shown)
    data = report_data.ReportData(
        name=record.config.name,
        created=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        warnings=warnings_of(record.training.run),
        duration_seconds=record.seconds,
        ingest=_ingest_counts(record.ingest, dataset),
        metrics=_curves(record.training.run),
        classes=features.classes,
        scores=_scores(scores),
        reconstructions=pictures.reconstructions(),
        attention=pictures.attention(),
        maps=_maps(features),
        retrievals=_retrievals(dataset, config, features),
        registered=[
            report_data.Registered(
                name=model.name,
                version=model.version,
                alias=record.config.promote.alias,
                alias_moved=model.alias_moved,
                reason=model.reason,
            )
            for model in record.registered
        ],
        tracking_uri=redacted(record.run.uri),
        settings=_settings(record.config),
        provenance=_provenance(record),
        notes={"scores": f"Nothing is scored, because {scores['reason']}."}
        if scores["reason"]
        else {},
    )
    return write_report(path, data)


def _ingest_counts(summary: IngestSummary, dataset: ClipDataset) -> report_data.IngestCounts:
    splits, counts = np.unique(dataset.index.split, return_counts=True)
    return report_data.IngestCounts(
        sources=summary.sources,
        accepted=summary.accepted,
        rejected=summary.rejected,
        clips=summary.clips,
        ignored=sum(summary.ignored.values()),
        media_seconds=summary.media_seconds,
        splits={str(name): int(count) for name, count in zip(splits, counts, strict=True)},
        rejects_by_reason=summary.rejects_by_reason,
        reason_meanings=REASONS,
        examples=[
            report_data.Reject(row["source"], row["reason"], row["message"])
            for row in dataset.rejects(NUM_REJECTS)
        ],
    )


def _curves(run: RunRef) -> dict[str, tuple[Array, Array]]:
    return {
        name: (np.array(steps), np.array(values))
        for name, (steps, values) in metric_histories(run).items()
    }


def _scores(scores: Mapping[str, Any]) -> list[report_data.Score]:
    found = []
    for modality, networks in scores["modalities"].items():
        trained, untrained = networks["trained"], networks.get("untrained")
        for measure in ("knn", "linear"):
            found.append(
                report_data.Score(
                    subject=modality,
                    measure=measure,
                    trained=trained[measure],
                    untrained=untrained[measure] if untrained else None,
                    chance=trained["majority"],
                    num_test=trained["num_test"],
                    trained_by_class=_numbers(trained[f"{measure}_per_class"]),
                    untrained_by_class=_numbers(untrained[f"{measure}_per_class"])
                    if untrained
                    else (),
                )
            )
    return found


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _shown_clips(features: Features) -> list[int]:
    """Held-out clips with both modalities, of different classes as far as possible."""
    both = np.isfinite(features.matrices["video/trained"]).all(axis=1)
    both &= np.isfinite(features.matrices["audio/trained"]).all(axis=1)
    candidates = np.flatnonzero(both & features.is_test)
    if not len(candidates):
        candidates = np.flatnonzero(both)
    first_of_class: dict[int, int] = {}
    for clip in candidates.tolist():
        first_of_class.setdefault(int(features.labels[clip]), clip)
    rest = [clip for clip in candidates.tolist() if clip not in first_of_class.values()]
    return [*first_of_class.values(), *rest][:NUM_CLIPS]


class _Pictures:
    """What the networks make of a few clips."""

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
            batch = middle_windows(dataset, config, features.rows[list(shown)])
            self._video, self._audio = plain_views(batch, config, LogMel(config.model.audio))

    def reconstructions(self) -> list[report_data.Reconstruction]:
        """The clips, what was hidden of them and what the students make of that."""
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
            report_data.Reconstruction(
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
    def attention(self) -> list[report_data.Attention]:
        """Where the teachers' CLS tokens look, heads averaged."""
        if not self._ids:
            return []
        _, video = self._model.video_teacher.tokens_and_attention(self._video)
        _, audio = self._model.audio_teacher.tokens_and_attention(self._audio)
        return [
            report_data.Attention(
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
    """A normalised view (3, T, H, W) as bytes (T, H, W, 3)."""
    shown = denormalize_video(video[None])[0].clamp(0, 1) * 255
    return shown.round().byte().permute(1, 2, 3, 0).numpy()


def _maps(features: Features) -> list[EmbeddingMap]:
    chosen = features.is_test if features.is_test.any() else features.is_train
    labels = [features.classes[label] if label >= 0 else "" for label in features.labels[chosen]]
    named = labels if any(labels) else ()
    maps = [
        map_embeddings(modality, features.matrices[f"{modality}/trained"][chosen], named)  # type: ignore[arg-type]
        for modality in MODALITIES
    ]
    return [plane for plane in maps if plane is not None]


def _retrievals(
    dataset: ClipDataset, config: PretrainConfig, features: Features
) -> list[report_data.Retrieval]:
    """Sounds that look for pictures, and the reverse, by the outputs of the teachers' heads."""
    clips = features.retrieval_clips
    if len(clips) <= NUM_NEIGHBORS:
        return []
    video, audio = (_directions(features.retrieval[f"{m}/trained"]) for m in MODALITIES)
    queries = np.linspace(0, len(clips) - 1, NUM_QUERIES).astype(int)
    similarity = {"audio_to_video": audio @ video.T, "video_to_audio": video @ audio.T}
    thumbnails = _Thumbnails(dataset, config, features)
    retrievals = []
    directions: tuple[Literal["audio_to_video", "video_to_audio"], ...] = (
        "audio_to_video",
        "video_to_audio",
    )
    for direction in directions:
        asked, found = direction.split("_to_")
        for query in queries.tolist():
            nearest = np.argsort(-similarity[direction][query], kind="stable")[:NUM_NEIGHBORS]
            retrievals.append(
                report_data.Retrieval(
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


def _directions(matrix: Array) -> Array:
    centered = matrix - matrix.mean(axis=0)
    return centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)


class _Thumbnails:
    """A frame or a spectrogram for a clip."""

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
    ) -> report_data.Neighbor:
        """The picture or the sound of a clip."""
        batch = middle_windows(self._dataset, self._config, self._features.rows[[clip]])
        video, audio = plain_views(batch, self._config, self._log_mel)
        pixels = _pixels(video[0])
        label = self._features.labels[clip]
        return report_data.Neighbor(
            image=pixels[len(pixels) // 2] if modality == "video" else audio[0, 0].numpy(),
            label=self._features.classes[label] if label >= 0 else "",
            similarity=similarity,
            is_same_clip=is_same_clip,
        )


def middle_windows(dataset: ClipDataset, config: PretrainConfig, rows: Array) -> ClipBatch:
    """The middle of some clips that have picture and sound."""
    frames, waveforms = [], []
    for clip in dataset.clips(rows):
        assert clip.frames is not None
        assert clip.waveform is not None
        frames += video_windows(clip.frames, config.model.video.num_frames, 1)
        waveforms += audio_windows(clip.waveform, config.model.audio.num_samples, 1)
    stacked, heights, widths = padded_frames(frames)
    return ClipBatch(stacked, heights, widths, torch.from_numpy(np.stack(waveforms)))


def _settings(config: RunConfig) -> str:
    return yaml.safe_dump(kept_settings(config), sort_keys=False, width=100)


def _provenance(record: RunRecord) -> dict[str, str]:
    tools = ("torch", "ray", "mlflow", "av", "timm", "numpy")
    return {
        "dataset": record.evaluation.scores["dataset_id"],
        "checkpoint": f"step {record.evaluation.scores['step']}",
        "MLflow run": record.run.run_id,
        "code": code_version(),
        "Python": platform.python_version(),
        **{tool: version(tool) for tool in tools},
    }
