"""The curves of a run's report: the section of each metric, its chart, and what it means.

Metrics are paths such as `loss/distillation/video_to_audio`, whose first part names the section. In
`health/` and `schedule/` the curves of the two modalities share a chart. A metric that is not
described here is drawn as well, without a description.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipelines.report.figures import Series, draw_lines
from pipelines.report.page import compact

Curve = tuple[NDArray[Any], NDArray[Any]]
"""Steps and values."""

_NOT_A_VALUE = 1e300
"""MLflow stores an infinite value as the largest float."""
_WIDE = "loss/total"

_LOSSES = {
    "total": "The weighted mean of the three losses, which training minimizes.",
    "reconstruction": "Error of the decoders on hidden patches. Should fall.",
    "reconstruction/video": "Error on hidden patches of frames. Should fall.",
    "reconstruction/audio": "Error on hidden patches of spectrograms. Should fall.",
    "alignment": "Distance (MMD) between the video and audio features of a batch. Unrelated "
    "batches of n and m rows have a distance of 7/n + 7/m and no gradient.",
    "alignment/student": "Distance between the two students. Should fall.",
    "alignment/teacher": "Distance between the two teachers: recorded, without a gradient.",
    "distillation": "Cross-entropy of each student against the other modality's teacher. Its "
    "lower bound is the entropy of the teacher's targets; near 0 the targets have collapsed.",
    "distillation/video_to_audio": "Loss of the audio student against the video teacher.",
    "distillation/audio_to_video": "Loss of the video student against the audio teacher.",
}

_HEALTH = {
    "collapsed": "1 while the measures below indicate a collapse.",
    "information": "Information in the teacher's targets about the clip, as a share of the "
    "maximum. Bad: below 0.15, where the targets are nearly the same for all clips (collapse).",
    "rank": "Effective number of directions in the teacher's features, at most the clips of a "
    "batch. Bad: falling towards 1, where all clips have the same features (collapse).",
    "std": "Standard deviation of the teacher's features over clips, about 1 if their directions "
    "are uniform. Bad: falling towards 0 (collapse).",
    "entropy": "Entropy of the teacher's targets. Bad at both ends: at 0 every clip gets one "
    "certain output; at the log of the number of outputs the target is uniform.",
    "kl": "Divergence of the other modality's student from this teacher's targets. Bad: rising "
    "for long, or near 0 from the start.",
    "within": "Mean cosine between the student's outputs for different clips. Bad: rising towards "
    "1, where all clips have the same output.",
    "between": "Mean cosine between a clip's outputs for video and audio. Bad: staying low, where "
    "the modalities stay apart. A high value is good only while the clips differ.",
    "mmd": "Distance (MMD) between the outputs for video and audio, without its constant part. "
    "Bad: high, where the modalities stay apart, or staying at 0, where outputs are too far apart "
    "for a gradient. Below 0 they overlap.",
    "center": "Norm of the center that is subtracted from the teacher's outputs. Bad: growing "
    "without bound, where a few outputs win for every clip.",
    "knn": "Accuracy of nearest neighbors on labelled clips. Bad: falling.",
}
"""By a part of the metric's name; the first match counts."""

_OTHERS = {
    "data_wait": "Share of the time that the slowest-fed worker waits for clips. Above 10 % the "
    "feed is too slow: give it more workers or put the dataset on a faster disk.",
    "wait": "Time spent waiting for clips. Bad: above a tenth of a step.",
    "mfu": "Share of the devices' peak that the model's arithmetic reaches.",
    "share_": "Share of the time of the thread that trains; the five shares sum to 1. On a GPU it "
    "waits in `other` for the device, so a large share there is good.",
    "clips_per_second": "Clips per second over all workers.",
    "step_seconds": "Duration of one step.",
    "grad_norm": "Norm of the gradient. Bad: sudden peaks, or 0.",
    "memory": "Memory in use. Bad: growing without bound.",
    "epoch": "Passes over the dataset.",
}


@dataclass(frozen=True)
class Card:
    """One chart with its title and its meaning."""

    title: str
    meaning: str
    values: tuple[tuple[str, str, str], ...]
    """Color, name and last value of each line."""
    lost: int
    """The number of values that are not finite."""
    drawing: Markup
    wide_drawing: Markup | None = None


@dataclass(frozen=True)
class CurveSections:
    """All charts by section."""

    losses: tuple[Card, ...]
    schedules: tuple[Card, ...]
    health: tuple[Card, ...]
    speed: tuple[Card, ...]
    machine: tuple[Card, ...]


def make_cards(metrics: Mapping[str, Curve]) -> CurveSections:
    """Sorts the curves into sections and draws them, except `evaluation/`, shown as scores."""
    parts: dict[str, dict[str, Curve]] = {"loss": {}, "schedule": {}, "health": {}, "system": {}}
    others: dict[str, Curve] = {}
    for name in sorted(metrics):
        first, _, rest = name.partition("/")
        if len(metrics[name][1]) and first != "evaluation":
            parts.get(first if rest else "", others)[name] = _clean(metrics[name])
    losses = sorted(parts["loss"], key=lambda name: (name != _WIDE, _loss_rank(name)))
    return CurveSections(
        losses=tuple(
            _card(_after(name), _LOSSES.get(_after(name), ""), {name: parts["loss"][name]})
            for name in losses
        ),
        schedules=_shared_cards(parts["schedule"], {}),
        health=_shared_cards(parts["health"], _HEALTH),
        speed=tuple(_card(n, _find(_OTHERS, n), {n: curve}) for n, curve in others.items()),
        machine=tuple(_card(_after(n), "", {n: curve}) for n, curve in parts["system"].items()),
    )


def last_finite(curve: Curve) -> float | None:
    """Returns the last finite value, or None."""
    values = _clean(curve)[1]
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def _shared_cards(curves: Mapping[str, Curve], meanings: Mapping[str, str]) -> tuple[Card, ...]:
    """One card per measure, with the curves of both modalities."""
    measures: dict[str, dict[str, Curve]] = {}
    for name in sorted(curves, key=lambda name: ("audio" in name, name)):
        measure = re.sub(r"(^|(?<=/))(video|audio)[/_]", "", _after(name))
        measures.setdefault(measure, {})[name] = curves[name]
    known = list(meanings.values())

    def rank(measure: str) -> tuple[bool, int, str]:
        meaning = _find(meanings, measure)
        order = known.index(meaning) if meaning else len(known)
        return measure != "learning_rate", order, measure

    return tuple(
        _card(measure, _find(meanings, measure), measures[measure])
        for measure in sorted(measures, key=rank)
    )


def _card(title: str, meaning: str, curves: Mapping[str, Curve]) -> Card:
    lines = {name: Series(*curve, color=_color(name)) for name, curve in curves.items()}
    values = []
    for name, curve in curves.items():
        last = last_finite(curve)
        shown = "no number" if last is None else compact(last)
        side = _color(name)
        values.append((side, side if len(curves) > 1 and side != "plain" else "", shown))
    last_step = max(float(curve[0].max()) for curve in curves.values())
    said = ", ".join(" ".join(filter(None, (name, value))) for _, name, value in values)
    alt = f"{title} over steps up to {last_step:.0f}; last value: {said}"
    is_wide = _WIDE in curves
    return Card(
        title=title.replace("_to_", " \u2192 ").replace("_", " ").replace("/", " / "),
        meaning=meaning,
        values=tuple(values),
        lost=int(sum((~np.isfinite(values)).sum() for _, values in curves.values())),
        drawing=draw_lines(list(lines.values()), alt=alt),
        wide_drawing=draw_lines(list(lines.values()), alt=alt, width=1000, height=230)
        if is_wide
        else None,
    )


def _clean(curve: Curve) -> Curve:
    steps, values = (np.asarray(part, dtype=np.float64) for part in curve)
    order = np.argsort(steps, kind="stable")
    values = np.where(np.abs(values) < _NOT_A_VALUE, values, np.nan)
    return steps[order], values[order]


def _loss_rank(name: str) -> int:
    known = list(_LOSSES)
    return known.index(_after(name)) if _after(name) in known else len(known)


def _after(name: str) -> str:
    return name.partition("/")[2] or name


def _find(meanings: Mapping[str, str], name: str) -> str:
    return next((text for part, text in meanings.items() if part in name), "")


def _color(name: str) -> str:
    """The color of the one modality that a name mentions, else plain."""
    sides = [side for side in ("video", "audio") if side in name]
    return sides[0] if len(sides) == 1 else "plain"
