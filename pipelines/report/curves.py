"""The report's curves: which measure stands where, and what it says.

Measures are paths, `loss/distillation/video_to_audio`; the first part names the section. Within
`health/` the curves of the two modalities share one chart. A measure that is not described here is
still drawn, so nothing recorded goes missing.
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
"""MLflow stores an infinite value as the largest number there is."""
_WIDE = "loss/total"

_LOSSES = {
    "total": "The weighted mean of the three terms, which training minimizes.",
    "reconstruction": "Error of the hidden patches that the decoders fill in. Should fall.",
    "reconstruction/video": "The same for hidden patches of frames. Should fall.",
    "reconstruction/audio": "The same for hidden patches of spectrograms. Should fall.",
    "alignment": "Distance (MMD) between the features of picture and sound, batch by batch. Two "
    "unrelated batches have a floor of 7/n + 7/m, with n and m rows, and no gradient.",
    "alignment/student": "The distance between the two students. Should fall.",
    "alignment/teacher": "The distance between the two teachers: watched, it moves nothing itself.",
    "distillation": "Cross-entropy of students under the other modality's teacher. It cannot fall "
    "below the entropy of the teacher's targets; falling to 0 means that these have collapsed.",
    "distillation/video_to_audio": "What the audio student misses of the video teacher.",
    "distillation/audio_to_video": "What the video student misses of the audio teacher.",
}

_HEALTH = {
    "collapsed": "1 while the measures below say that the run has collapsed.",
    "information": "What the teacher's targets tell about the clip, as a share of the most they "
    "could. Bad: below 0.15, where they are nearly the same for all clips (collapse).",
    "rank": "How many directions the teacher's features really use, at most the clips of a batch. "
    "Bad: falling towards 1, where all clips look alike (collapse).",
    "std": "Spread of the teacher's features over clips, about 1 if they point everywhere alike. "
    "Bad: falling towards 0 (collapse).",
    "entropy": "How undecided the teacher's targets are. Bad at both ends: 0 names one output "
    "with certainty, the logarithm of the number of outputs says nothing.",
    "kl": "How far the other modality's student is from this teacher's targets. Bad: rising for "
    "long, or near 0 from the first steps on.",
    "within": "Mean cosine between the student's outputs for different clips. Bad: rising towards "
    "1, where all clips look alike.",
    "between": "Mean cosine between outputs for picture and sound. Bad: staying low, where the two "
    "never meet. High is good only while clips differ among themselves.",
    "mmd": "Distance between outputs for picture and sound, less its constant part. Bad: high, "
    "where each keeps to itself, or staying at 0, where nothing is near and nothing pulls. Below 0 "
    "they meet.",
    "center": "Length of the center that is taken off the teacher's outputs. Bad: growing without "
    "end, where a few outputs win every clip.",
    "knn": "Accuracy of nearest neighbors on a labelled part. Bad: falling.",
}
"""By a part of the measure's last name; the first that fits counts."""

_OTHERS = {
    "data_wait": "Share of the time spent waiting for clips, by the worker that waits longest. "
    "Above 10 % the feed is too slow: give it more workers, or put the dataset on a faster disk.",
    "wait": "Time spent waiting for clips. Bad: more than a tenth of a step.",
    "clips_per_second": "Clips trained on each second, over all workers.",
    "step_seconds": "Time of one step.",
    "grad_norm": "Length of the gradient. Bad: sudden peaks, or 0.",
    "memory": "Memory in use. Bad: growing without end.",
    "epoch": "Passes over the dataset.",
}


@dataclass(frozen=True)
class Card:
    """One chart with its heading and what it says."""

    title: str
    meaning: str
    values: tuple[tuple[str, str, str], ...]
    """Of each line: color, name and last value."""
    lost: int
    """Values that were not finite."""
    drawing: Markup
    wide_drawing: Markup | None = None


@dataclass(frozen=True)
class CurveSections:
    """All charts by the section they stand in."""

    losses: tuple[Card, ...]
    schedules: tuple[Card, ...]
    health: tuple[Card, ...]
    speed: tuple[Card, ...]
    machine: tuple[Card, ...]


def make_cards(metrics: Mapping[str, Curve]) -> CurveSections:
    """Sorts the curves into sections and draws them; `evaluation/` is told by the scores."""
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
    """Returns the last value that is a number, if any is."""
    values = _clean(curve)[1]
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def _shared_cards(curves: Mapping[str, Curve], meanings: Mapping[str, str]) -> tuple[Card, ...]:
    """One card for each measure, which holds both modalities' curves of it."""
    measures: dict[str, dict[str, Curve]] = {}
    for name in sorted(curves, key=lambda name: ("audio" in name, name)):
        measure = re.sub(r"(^|(?<=/))(video|audio)[/_]", "", _after(name))
        measures.setdefault(measure, {})[name] = curves[name]
    known = list(meanings.values())

    def place(measure: str) -> tuple[bool, int, str]:
        meaning = _find(meanings, measure)
        order = known.index(meaning) if meaning else len(known)
        return measure != "learning_rate", order, measure

    return tuple(
        _card(measure, _find(meanings, measure), measures[measure])
        for measure in sorted(measures, key=place)
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
    """A modality's own color; what runs from one to the other has neither's."""
    sides = [side for side in ("video", "audio") if side in name]
    return sides[0] if len(sides) == 1 else "plain"
