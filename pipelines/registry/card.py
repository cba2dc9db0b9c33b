"""The text that comes with a registered encoder: what it is, how good, how to use, where from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.models.encoder_files import EncoderInfo

MEASURES = {"linear": "linear probe", "knn": "k-NN"}
IMPORTED = "imported_from"
"""Key of the provenance of an encoder that was trained elsewhere."""


@dataclass(frozen=True)
class EncoderScores:
    """Accuracies of one encoder's frozen features, from 0 to 1."""

    dataset_id: str
    run_id: str
    """Of the evaluation."""
    num_classes: int
    num_test: int
    majority: float
    """Accuracy of always naming the most frequent class."""
    trained: Mapping[str, float]
    untrained: Mapping[str, float]
    """Of the same network before training; empty if that was not measured."""


def encoder_scores(scores: Mapping[str, Any] | None, modality: str) -> EncoderScores | None:
    """Takes one modality out of what an evaluation wrote; None if it was not scored."""
    networks = (scores or {}).get("modalities", {}).get(modality)
    if scores is None or not networks:
        return None
    trained = networks["trained"]
    return EncoderScores(
        dataset_id=scores["dataset_id"],
        run_id=scores["evaluate_run_id"],
        num_classes=len(scores["classes"]),
        num_test=trained["num_test"],
        majority=trained["majority"],
        trained={name: trained[name] for name in MEASURES},
        untrained={
            name: value for name, value in networks.get("untrained", {}).items() if name in MEASURES
        },
    )


def model_card(
    name: str, alias: str | None, info: EncoderInfo, scores: EncoderScores | None
) -> str:
    """Writes the card in Markdown."""
    return "\n".join(
        [
            *_introduction(name, info),
            *_usage(name, alias, info),
            *_preprocessing(info),
            *_quality(scores, info.clips.num_windows),
            *_origin(info),
        ]
    )


def _introduction(name: str, info: EncoderInfo) -> list[str]:
    size = info.model.encoder
    what = "pictures of a video" if info.modality == "video" else "sound of a video or a recording"
    return [
        f"# {name}",
        "",
        f"Turns the {what} into an embedding of {size.width} numbers. A ViT of depth {size.depth},"
        " pretrained without labels on video and its sound with XKD (arXiv:2211.13929).",
        "",
    ]


def _usage(name: str, alias: str | None, info: EncoderInfo) -> list[str]:
    version = f"@{alias}" if alias else "/VERSION"
    if info.modality == "video":
        arrays = 'model.predict({"frames": [frames], "frame_rate": [25.0]})  # uint8 (T, H, W, 3)'
    else:
        arrays = 'model.predict({"waveform": [samples], "sample_rate": [44100]})  # int16 (S,)'
    return [
        "## Use",
        "",
        "```python",
        "import mlflow",
        "",
        f'model = mlflow.pyfunc.load_model("models:/{name}{version}")',
        'model.predict({"path": ["one.mp4", "two.webm"]})  # float32, one row for each input',
        'model.predict({"bytes": [open("one.mp4", "rb").read()]})',
        arrays,
        "```",
        "",
        "A DataFrame with the same columns is taken too. `params` may set `batch_size` (windows at"
        " once) and `num_windows`. An input that cannot be decoded raises a ValueError naming it.",
        "",
    ]


def _preprocessing(info: EncoderInfo) -> list[str]:
    video, audio, clips = info.model.video, info.model.audio, info.clips
    if info.modality == "video":
        clip = (
            f"{video.num_frames} frames at {video.frame_rate:g} a second, the largest central"
            f" square, {video.size} x {video.size} pixels"
        )
    else:
        clip = (
            f"{audio.num_samples} samples at {audio.sample_rate} Hz, mono, as a log-mel"
            f" spectrogram of {audio.num_mels} x {audio.num_frames}"
        )
    return [
        "## What it looks at",
        "",
        f"An input is cut into segments of {clips.segment_seconds:g} s. Of each,"
        f" {clips.num_windows} windows are embedded, evenly spread: {clip}. The embedding is the"
        " mean over the windows of a segment, then over the segments. All of this is part of the"
        " model.",
        "",
    ]


def _quality(scores: EncoderScores | None, num_windows: int) -> list[str]:
    if scores is None:
        return ["## Scores", "", "Not evaluated.", ""]
    rows = []
    for measure, title in MEASURES.items():
        untrained = scores.untrained.get(measure)
        beside = "" if untrained is None else f"{untrained:.1%}"
        rows.append(f"| {title} | {scores.trained[measure]:.1%} | {beside} |")
    return [
        "## Scores",
        "",
        f"Accuracy of frozen features on {scores.num_test} held-out clips of {scores.num_classes}"
        f" classes, {num_windows} windows a clip; always naming the most frequent class"
        f" gives {scores.majority:.1%}.",
        "",
        "| measure | this encoder | untrained |",
        "|---|---|---|",
        *rows,
        "",
        f"Dataset `{scores.dataset_id}`, MLflow run `{scores.run_id}`.",
        "",
    ]


def _origin(info: EncoderInfo) -> list[str]:
    weights = "Code and weights: Apache-2.0."
    if IMPORTED in info.provenance:
        weights = (
            "Code: Apache-2.0. The weights were imported and have the licence of their makers;"
            " those published with the method are for non-commercial use only."
        )
    return [
        "## Where it comes from",
        "",
        *(f"- {key}: `{value}`" for key, value in info.provenance.items()),
        "",
        "## Licence",
        "",
        f"{weights} The media it was trained on have licences of their own.",
        "",
    ]
