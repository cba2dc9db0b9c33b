"""The card of a registered encoder: what it is, how to use it, its scores, and its origin."""

from typing import Any

import yaml

from pipelines.evaluation.outcomes import RETRIEVAL_RECALL
from pipelines.evaluation.scores import MEASURES, interval_text
from pipelines.models.encoder_files import EncoderInfo
from pipelines.quantities import counted
from pipelines.registry.encoder_scores import EncoderScores

IMPORTED = "imported_from"
"""Key of the provenance that only imported encoders have."""

CODE_NAME = "xkd_1a2b3c4d"
"""Stands in a card for the package of the version's code."""
_FENCE = "---\n"

BEGAN_FROM = "began_from"
"""Key of the provenance that only encoders have whose training began from weights."""


def model_card(
    name: str, alias: str | None, info: EncoderInfo, scores: EncoderScores | None
) -> str:
    """Writes the card in Markdown, after the front matter that model hubs read.

    The name of its code is known later: `CODE_NAME` stands for it.
    """
    return "\n".join(
        [
            *_front_matter(name, info, scores),
            *_introduction(name, info),
            *_usage(name, alias, info),
            *_preprocessing(info),
            *_quality(scores, info.clips.num_windows),
            *_origin(info),
        ]
    )


def without_front_matter(card: str) -> str:
    """The card for people alone."""
    return card.split(_FENCE, 2)[2] if card.startswith(_FENCE) else card


def _front_matter(name: str, info: EncoderInfo, scores: EncoderScores | None) -> list[str]:
    values: dict[str, Any] = {
        "license": "other" if IMPORTED in info.provenance else "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["xkd", info.modality, "self-supervised-learning", "arxiv:2211.13929"],
    }
    if IMPORTED in info.provenance:
        values["license_name"] = "of-the-authors-of-the-weights"
    if scores is not None:
        values["metrics"] = ["accuracy"] if scores.num_classes else ["recall"]
        values["model-index"] = [{"name": name, "results": [_result(info, scores)]}]
    return [_FENCE + yaml.safe_dump(values, sort_keys=False) + _FENCE]


def _result(info: EncoderInfo, scores: EncoderScores) -> dict[str, Any]:
    """The scores as model hubs read them."""
    marks = f" ({'; '.join(scores.marks)})" if scores.marks else ""
    return {
        "task": {"type": "feature-extraction", "name": f"frozen {info.modality} features"},
        "dataset": {"name": scores.dataset_id + marks, "type": "clip-dataset"},
        "metrics": [
            {
                "type": "recall" if measure == "retrieval" else "accuracy",
                "name": MEASURES[measure],
                "value": round(float(figure.value), 4),
            }
            for measure, figure in scores.trained.items()
        ],
    }


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
        ' that names it; with `params={"on_error": "null"}` the answer is a table instead, with an'
        " `embedding` or an `error` for each input.",
        "",
        *_usage_of_the_folder(info),
    ]


def _usage_of_the_folder(info: EncoderInfo) -> list[str]:
    """How the module and transformers are used; `MODEL` is the folder of the model."""
    video, audio = info.model.video, info.model.audio
    clips, about = "waveforms", f"int16 (B, {audio.num_samples}) at {audio.sample_rate} Hz"
    if info.modality == "video":
        about = f"uint8 (B, {video.num_frames}, H, W, 3) at {video.frame_rate:g} frames a second"
        clips = "frames"
    return [
        f"As a `torch.nn.Module`, from the folder of the model; {clips} are {about}:",
        "",
        "```python",
        'import sys; sys.path.append("MODEL/code")',
        f"from {CODE_NAME} import load_module",
        f"encoder = load_module()  # encoder({clips}): (B, {info.model.encoder.width});"
        " encoder.forward_features: tokens",
        "",
        f"# or, from MLflow: mlflow.pyfunc.load_model(...).unwrap_python_model().module({clips})",
        "```",
        "",
        "With transformers:",
        "",
        "```python",
        "from transformers import AutoModel, AutoProcessor",
        "",
        'encoder = AutoModel.from_pretrained("MODEL", trust_remote_code=True)',
        'processor = AutoProcessor.from_pretrained("MODEL", trust_remote_code=True)',
        f"encoder(**processor({clips})).pooler_output",
        "```",
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
        star = " \\*" if scores.marks else ""
        rows.append(
            f"| {title} | {trained.value:.1%}{star} | {interval_text(trained)} | {beside} |"
        )
    clips, windows = counted(scores.num_test, "held-out clip"), counted(num_windows, "window")
    if scores.num_classes:
        classes = counted(scores.num_classes, "class", "classes")
        what = (
            f"Accuracy of frozen features on {clips} of {classes}, {windows} per clip. Always"
            f" answering the most frequent class gives {scores.majority:.1%}."
        )
    else:
        what = (
            f"Without labels: how often {clips} find their own other modality among the first"
            f" {RETRIEVAL_RECALL}, {windows} per clip. Guessing gives"
            f" {min(1.0, RETRIEVAL_RECALL / max(1, scores.num_test)):.1%}."
        )
    return [
        "## Scores",
        "",
        what,
        "",
        "| measure | this encoder | 95 % interval over sources | untrained |",
        "|---|---|---|---|",
        *rows,
        "",
        *_marks(scores.marks),
        f"Dataset `{scores.dataset_id}`, MLflow run `{scores.run_id}`.",
        "",
    ]


def _marks(marks: tuple[str, ...]) -> list[str]:
    if not marks:
        return []
    return [f"\\* Not the figure of the whole official split: {'; '.join(marks)}.", ""]


def _origin(info: EncoderInfo) -> list[str]:
    weights = "Code and weights: Apache-2.0."
    if IMPORTED in info.provenance:
        weights = (
            "Code: Apache-2.0. The weights were imported and keep their authors' license;"
            " those published with the method are for non-commercial use only."
        )
    begun = []
    if BEGAN_FROM in info.provenance:
        content = str(info.provenance.get(f"{BEGAN_FROM}_content", ""))
        begun = [
            f"Its training began from `{info.provenance[BEGAN_FROM]}`, content `{content[:12]}`.",
            "",
        ]
    return [
        "## Origin",
        "",
        *begun,
        *(f"- {key}: `{value}`" for key, value in info.provenance.items()),
        "",
        "## License",
        "",
        f"{weights} The media that it was trained on have licenses of their own.",
        "",
    ]
