"""The report of a run: one HTML file that says what it did, from the data gathered for it.

What is missing in `ReportData` becomes a sentence that says so, never an empty box.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.evaluation.scores import MEASURES, standard_error
from pipelines.quantities import counted
from pipelines.redaction import redacted
from pipelines.report import images
from pipelines.report.curves import Curve, last_finite, make_cards
from pipelines.report.embedding_map import MAX_CLASSES, EmbeddingMap, class_signs, group_points
from pipelines.report.figures import draw_map, draw_marker
from pipelines.report.page import page_environment, write_page
from pipelines.report.run_data import (
    Attention,
    IngestCounts,
    Neighbor,
    Reconstruction,
    Reject,
    ReportData,
    Retrieval,
)
from pipelines.report.scores import (
    class_panel,
    gain,
    head_scores,
    headline,
    mark_sentence,
    recall_sentences,
    score_title,
    verdict,
)
from pipelines.storage import AnyPath

_MAX_EXAMPLES = 8
"""Rejected files shown under each reason."""


def write_report(path: AnyPath, data: ReportData) -> AnyPath:
    """Writes the report to `path`, whole or not at all.

    Raises:
        UserError: if the file cannot be written.
    """
    return write_page(path, render(data))


def render(data: ReportData) -> str:
    """Returns the report as HTML."""
    signs = class_signs([label for plane in data.maps for label in plane.labels])
    return (
        page_environment()
        .get_template("run.html")
        .render(
            data=data,
            headline=headline(data),
            curves=make_cards(data.metrics),
            last_loss=last_finite(data.metrics["loss/total"])
            if "loss/total" in data.metrics
            else None,
            num_steps=_last_step(data.metrics),
            class_panels=[
                class_panel(score, data.classes)
                for score in data.scores
                if len(score.trained_by_class)
            ],
            reconstructions=[_reconstruction(item) for item in data.reconstructions],
            attention=[_attention(item) for item in data.attention],
            head_scores=head_scores(data.scores),
            maps=[_map(plane, signs) for plane in data.maps],
            legend=[(label, draw_marker(*sign)) for label, sign in signs.items()],
            max_classes=MAX_CLASSES,
            measures=MEASURES,
            retrievals=_retrievals(data.retrievals),
            recalls=recall_sentences(data.scores, data.marks),
            marked=mark_sentence(data.marks) if data.marks else "",
            examples=_examples(data.ingest),
            settings=redacted(data.settings),
            tracking_uri=redacted(data.tracking_uri),
            **{tool.__name__: tool for tool in (score_title, gain, verdict, standard_error)},
        )
    )


def _examples(ingest: IngestCounts | None) -> dict[str, list[Reject]]:
    """The first few rejects of each reason."""
    if ingest is None:
        return {}
    return {
        reason: [reject for reject in ingest.examples if reject.reason == reason][:_MAX_EXAMPLES]
        for reason in ingest.rejects_by_reason
    }


def _last_step(metrics: Mapping[str, Curve]) -> int:
    lasts = [
        np.max(steps)
        for name, (steps, _) in metrics.items()
        if name.startswith("loss/") and len(steps)
    ]
    return int(max(lasts)) + 1 if lasts else 0  # the first step is 0


def _reconstruction(item: Reconstruction) -> dict[str, Any]:
    shown: dict[str, Any] = {"title": item.title, "frames": [], "spectrograms": []}
    frames, hidden, filled = item.frames, item.frames_hidden, item.frames_filled
    if frames is not None and hidden is not None and filled is not None:
        rows = {
            "original": frames,
            "visible to the student": images.hide_frames(frames, hidden),
            "reconstructed": images.fill_hidden(frames, hidden, filled),
        }
        shown["frames"] = [(name, images.frame_images(row)) for name, row in rows.items()]
        shown["frames_share"] = float(np.mean(hidden))
    sound, hidden, filled = item.spectrogram, item.spectrogram_hidden, item.spectrogram_filled
    if sound is not None and hidden is not None and filled is not None:
        limits = images.value_limits(sound)
        full = images.fill_hidden(sound, hidden, filled)
        shown["spectrograms"] = [
            ("original", images.spectrogram_image(sound, limits=limits)),
            ("visible to the student", images.spectrogram_image(sound, hidden, limits)),
            ("reconstructed", images.spectrogram_image(full, limits=limits)),
        ]
        shown["spectrogram_share"] = float(np.mean(hidden))
    return shown


def _attention(item: Attention) -> dict[str, Any]:
    shown: dict[str, Any] = {"title": item.title, "frames": [], "spectrograms": []}
    frames, attention = item.frames, item.frames_attention
    if frames is not None and attention is not None:
        shown["frames"] = [
            ("original", images.frame_images(frames)),
            ("attention", images.attention_frames(frames, attention)),
        ]
    sound, attention = item.spectrogram, item.spectrogram_attention
    if sound is not None and attention is not None:
        shown["spectrograms"] = [
            ("original", images.spectrogram_image(sound)),
            ("attention", images.attention_spectrogram(sound, attention)),
        ]
    return shown


def _map(plane: EmbeddingMap, signs: dict[str, tuple[str, str]]) -> dict[str, Any]:
    groups, num_others = group_points(plane, signs)
    alt = f"{plane.method} map of {counted(len(plane.points), f'{plane.modality} embedding')}"
    return {"plane": plane, "drawing": draw_map(groups, alt=alt), "num_others": num_others}


def _retrievals(items: Sequence[Retrieval]) -> dict[str, list[dict[str, Any]]]:
    shown: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        row = {
            "query": item.query,
            "image": _thumbnail(item.query),
            "neighbors": [
                (neighbor, _thumbnail(neighbor), _verdict(item.query, neighbor))
                for neighbor in item.neighbors
            ],
        }
        shown.setdefault(item.direction, []).append(row)
    return shown


def _thumbnail(clip: Neighbor) -> str:
    if clip.image.ndim == 3:
        return images.frame_image(clip.image)
    return images.spectrogram_image(clip.image)


def _verdict(query: Neighbor, neighbor: Neighbor) -> str:
    if neighbor.is_same_clip:
        return "own"
    if not query.label or not neighbor.label:
        return "unknown"
    return "right" if query.label == neighbor.label else "wrong"
