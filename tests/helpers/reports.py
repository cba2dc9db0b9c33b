"""A made-up run that looks like a real one: what the tests of the report render."""

import numpy as np

from pipelines.report.embedding_map import map_embeddings
from pipelines.report.run_data import (
    Attention,
    IngestCounts,
    Neighbor,
    Reconstruction,
    RegisteredModel,
    Reject,
    ReportData,
    Retrieval,
    Score,
)

CLASSES = ("bouncing", "circling", "falling", "growing", "pulsing", "spinning", "swaying", "zigzag")
STEPS = np.arange(0, 1200, 10)


def example(classes=CLASSES, num_clips=240, seed=0) -> ReportData:
    rng = np.random.default_rng(seed)
    labels = [classes[i % len(classes)] for i in range(num_clips)]
    return ReportData(
        name="smoke",
        created="2026-11-23 23:50",
        duration_seconds=312.0,
        ingest=_ingest(),
        metrics=_metrics(rng),
        classes=classes,
        scores=_scores(rng, len(classes)),
        reconstructions=[_reconstruction(rng, f"{label} / 003.mp4") for label in labels[:2]],
        attention=[_attention(rng, f"{label} / 003.mp4") for label in labels[:2]],
        maps=[map_embeddings(m, _features(rng, labels), labels) for m in ("video", "audio")],
        retrievals=[
            _retrieval(rng, d, labels, i)
            for d in ("audio_to_video", "video_to_audio")
            for i in range(3)
        ],
        registered=[
            RegisteredModel(
                "xkd-video",
                "2",
                "champion",
                True,
                "linear 71.3 % beats version 1 (68.0 %) on the same dataset",
            ),
            RegisteredModel(
                "xkd-audio",
                "2",
                "champion",
                False,
                "linear 83.1 % does not beat version 1 (84.0 %)",
            ),
        ],
        tracking_uri="http://me:secret@mlflow.example:5000",
        settings="pretrain:\n  epochs: 30\n  batch_size: 32\n" + "  x: 1\n" * 40,
        provenance={
            "dataset id": "b1946ac92492d2347c6235b4d2611184",
            "run id": "0f3c9a",
            "code": "1.0+g4f2a",
            "torch": "2.14.1",
        },
    )


def frames_of(phase, num_frames=16, size=64):
    time = np.arange(num_frames)
    y, x = np.mgrid[:size, :size]
    center_x = size / 2 + size / 3 * np.cos(time / 3 + phase)
    center_y = size / 2 + size / 3 * np.abs(np.sin(time / 3 + phase))
    distance = np.hypot(x - center_x[:, None, None], y - center_y[:, None, None])
    disc = np.clip(12 - distance, 0, 1)[..., None]
    hue = 0.5 + 0.5 * np.cos(phase + np.array([0, 2, 4]))
    ground = 0.25 + 0.3 * (x / size)[None, :, :, None] * (1 - hue)
    return ((disc * hue + (1 - disc) * ground) * 255).astype(np.uint8)


def spectrogram_of(phase, num_mels=80, num_frames=224):
    mel, time = np.mgrid[:num_mels, :num_frames]
    tone = num_mels / 2 + 20 * np.sin(time / 15 + phase)
    noise = np.random.default_rng(int(phase * 100)).normal(0, 0.2, (num_mels, num_frames))
    return (
        3 * np.exp(-((mel - tone) ** 2) / 18)
        + 1.5 * np.exp(-((mel - tone / 2) ** 2) / 10)
        - 1
        + noise
    ).astype(np.float32)


def _ingest():
    return IngestCounts(
        sources=302,
        accepted=299,
        rejected=3,
        clips=299,
        ignored=2,
        media_seconds=1507.0,
        splits={"train": 224, "test": 75},
        rejects_by_reason={"undecodable": 2, "too_short": 1},
        reason_meanings={
            "undecodable": "No decoder could read the file.",
            "too_short": "Shorter than the shortest segment.",
        },
        examples=[
            Reject(
                "runs/made/train/bouncing/broken <b>&amp;.mp4",
                "undecodable",
                "Invalid data found when processing input",
            ),
            Reject(
                "runs/made/test/a/" + "very-long-name-" * 12 + ".mkv",
                "undecodable",
                "moov atom not found",
            ),
            Reject("runs/made/train/x/empty.webm", "too_short", "0.4 s is less than 1.1 s"),
        ],
    )


def _metrics(rng):
    fall = np.exp(-STEPS / 300)

    def curve(low, high, noise=0.04):
        return STEPS, low + (high - low) * fall + rng.normal(0, noise * (high - low), len(STEPS))

    def rise(low, high):
        return STEPS, high - (high - low) * fall

    cosine = 0.5 * (1 + np.cos(np.pi * STEPS / STEPS[-1]))
    warm = np.minimum(1, (STEPS + 10) / 120)
    return {
        "loss/total": curve(1.4, 4.2),
        "loss/reconstruction": curve(0.6, 1.1),
        "loss/reconstruction/video": curve(0.5, 1.0),
        "loss/reconstruction/audio": curve(0.7, 1.2),
        "loss/alignment": curve(0.44, 3.0),
        "loss/alignment/student": curve(0.45, 2.9),
        "loss/alignment/teacher": curve(0.43, 3.1),
        "loss/distillation": curve(4.4, 21.0),
        "loss/distillation/video_to_audio": curve(4.3, 20.0),
        "loss/distillation/audio_to_video": curve(4.6, 22.0),
        "schedule/learning_rate": (STEPS, 5e-4 * cosine * warm),
        "schedule/video_momentum": (STEPS, 1 - 0.003 * cosine),
        "schedule/audio_momentum": (STEPS, 1 - 0.003 * cosine),
        "schedule/video_teacher_temperature": (STEPS, np.full(len(STEPS), 0.1)),
        "schedule/audio_teacher_temperature": (STEPS, np.full(len(STEPS), 0.07)),
        "schedule/epoch": (STEPS, STEPS / 40.0),
        "health/video/effective_rank": rise(3, 41),
        "health/audio/effective_rank": rise(4, 55),
        "health/video/feature_std": rise(0.1, 0.7),
        "health/audio/feature_std": rise(0.2, 0.8),
        "health/video/target_entropy": curve(3.2, 6.0),
        "health/audio/target_entropy": curve(3.0, 6.1),
        "health/video/cosine_within": curve(0.21, 0.95),
        "health/audio/cosine_within": curve(0.2, 0.93),
        "health/cosine_between": rise(0.02, 0.4),
        "health/mmd": curve(-0.2, 2.1),
        "health/video/target_kl": curve(1.1, 15.0),
        "health/audio/target_kl": curve(1.2, 16.0),
        "health/video/center_norm": rise(0, 12),
        "health/audio/center_norm": rise(0, 14),
        "time/step_seconds": (STEPS, 0.21 + rng.gamma(2, 0.01, len(STEPS))),
        "time/data_wait_share": (STEPS, rng.gamma(2, 0.004, len(STEPS))),
        "time/clips_per_second": (STEPS, 150 + rng.normal(0, 6, len(STEPS))),
        "grad_norm/total": curve(0.6, 3.0, 0.1),
    }


def _scores(rng, num_classes):
    scores = []
    for subject, trained, untrained in (("video", 0.71, 0.39), ("audio", 0.83, 0.55)):
        for measure, shift in (("linear", 0.0), ("knn", -0.08)):
            by_class = np.clip(rng.normal(trained + shift, 0.15, num_classes), 0, 1)
            before = np.clip(rng.normal(untrained + shift, 0.15, num_classes), 0, 1)
            scores.append(
                Score(
                    subject,
                    measure,
                    trained + shift,
                    untrained + shift,
                    1 / num_classes,
                    75,
                    tuple(by_class),
                    tuple(before),
                )
            )
    scores.append(Score("audio_to_video", "recall@1", 0.24, 0.02, 1 / 75, 75))
    scores.append(Score("video_to_audio", "recall@1", 0.01, 0.02, 1 / 75, 75))
    return scores


def _features(rng, labels):
    names = sorted(set(labels))
    centers = rng.normal(0, 1, (len(names), 32))
    return np.stack([centers[names.index(label)] for label in labels]) + rng.normal(
        0, 0.6, (len(labels), 32)
    )


def _reconstruction(rng, title):
    phase = float(rng.uniform(0, 6))
    frames, spectrogram = frames_of(phase), spectrogram_of(phase)
    blurred = (frames * 0.7 + frames.mean(axis=(1, 2), keepdims=True) * 0.3).astype(np.uint8)
    return Reconstruction(
        title,
        frames,
        rng.random((4, 4, 4)) < 0.85,
        blurred,
        spectrogram,
        rng.random((20, 14)) < 0.8,
        spectrogram * 0.7,
    )


def _attention(rng, title):
    phase = float(rng.uniform(0, 6))
    return Attention(
        title,
        frames_of(phase),
        rng.random((4, 4, 4)) ** 3,
        spectrogram_of(phase),
        rng.random((20, 14)) ** 3,
    )


def _retrieval(rng, direction, labels, i):
    def side(column, is_video):
        image = frames_of(column * 0.7, 1)[0] if is_video else spectrogram_of(column * 0.7)
        return image, labels[column]

    to_video = direction == "audio_to_video"
    near = [
        Neighbor(*side(column, to_video), similarity=0.9 - 0.05 * rank, is_same_clip=column == i)
        for rank, column in enumerate([i, i + len(CLASSES), i + 1, i + 2 * len(CLASSES), i + 3])
    ]
    return Retrieval(direction, Neighbor(*side(i, not to_video)), near)
