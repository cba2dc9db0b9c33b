"""The card of a registered encoder: what it is, how to use it, its scores, and its origin."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.evaluation.intervals import Figure
from pipelines.evaluation.outcomes import RETRIEVAL_RECALL
from pipelines.evaluation.scores import MEASURES, FeatureScores, Scores, interval_text
from pipelines.models.encoder_files import EncoderInfo
from pipelines.quantities import counted

IMPORTED = "imported_from"
"""Key of the provenance that only imported encoders have."""


@dataclass(frozen=True)
class EncoderScores:
    """Scores of one encoder's frozen features, from 0 to 1."""

    dataset_id: str
    run_id: str
    """The evaluation's."""
    num_classes: int
    num_test: int
    majority: float
    """Accuracy of a classifier that always answers the most frequent class."""
    num_sources: int
    trained: Mapping[str, Figure]
    untrained: Mapping[str, Figure]
    """Of the same network before training; empty if it was not evaluated."""


def encoder_scores(scores: Scores | None, modality: str) -> EncoderScores | None:
    """Returns the scores of one modality; None if it was not scored."""
    if scores is None or modality not in scores.found.modalities:
        return None
    networks = scores.found.modalities[modality]
    trained, untrained = networks["trained"], networks.get("untrained")
    return EncoderScores(
        dataset_id=scores.dataset_id,
        run_id=scores.evaluate_run_id,
        num_classes=len(scores.found.classes),
        num_test=trained.num_test,
        majority=trained.majority,
        num_sources=trained.num_sources,
        trained=_scores_of(scores.found, modality, "trained"),
        untrained=_scores_of(scores.found, modality, "untrained") if untrained else {},
    )


def _scores_of(found: FeatureScores, modality: str, network: str) -> dict[str, Figure]:
    """Returns the score of each measure; of retrieval the recall@5 of this modality asking."""
    measures = found.modalities[modality][network].measures
    result = {name: one.score for name, one in measures.items()}
    for direction, networks in found.retrieval.items():
        if direction.startswith(f"{modality}_to_") and network in networks:
            result["retrieval"] = networks[network].figures[f"recall@{RETRIEVAL_RECALL}"]
    return result


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
    what = "picture of a video" if info.modality == "video" else "sound of a video or a recording"
    return [
        f"# {name}",
        "",
        f"Turns the {what} into an embedding of {size.width} numbers: a ViT of depth {size.depth},"
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
        "A DataFrame with these columns works too. `params` may set `batch_size` (windows per"
        " forward pass) and `num_windows`. An input that cannot be decoded raises a ValueError"
        " that names it.",
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
        "## Preprocessing",
        "",
        f"An input is cut into segments of {clips.segment_seconds:g} s, and"
        f" {clips.num_windows} evenly spaced windows of each segment are embedded: {clip}. The"
        " embedding is the mean over the windows of a segment, then over the segments. The model"
        " contains all of this preprocessing.",
        "",
    ]


def _quality(scores: EncoderScores | None, num_windows: int) -> list[str]:
    if scores is None:
        return ["## Scores", "", "Not evaluated.", ""]
    rows = []
    for measure, trained in scores.trained.items():
        untrained = scores.untrained.get(measure)
        beside = "" if untrained is None else f"{untrained.value:.1%}"
        title = MEASURES[measure] + (" (recall@5)" if measure == "retrieval" else "")
        rows.append(f"| {title} | {trained.value:.1%} | {interval_text(trained)} | {beside} |")
    return [
        "## Scores",
        "",
        f"Accuracy of frozen features on {counted(scores.num_test, 'held-out clip')} of"
        f" {counted(scores.num_classes, 'class', 'classes')}, {counted(num_windows, 'window')} per"
        f" clip. Always answering the most frequent class"
        f" gives {scores.majority:.1%}.",
        "",
        "| measure | this encoder | 95 % interval over sources | untrained |",
        "|---|---|---|---|",
        *rows,
        "",
        f"Dataset `{scores.dataset_id}`, MLflow run `{scores.run_id}`.",
        "",
    ]


def _origin(info: EncoderInfo) -> list[str]:
    weights = "Code and weights: Apache-2.0."
    if IMPORTED in info.provenance:
        weights = (
            "Code: Apache-2.0. The weights were imported and keep their authors' license;"
            " those published with the method are for non-commercial use only."
        )
    return [
        "## Origin",
        "",
        *(f"- {key}: `{value}`" for key, value in info.provenance.items()),
        "",
        "## License",
        "",
        f"{weights} The media that it was trained on have licenses of their own.",
        "",
    ]
