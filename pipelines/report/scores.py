"""Scores on the report's page: titles, differences, and whether chance explains them."""

import math
from collections.abc import Sequence
from typing import Any

from pipelines.evaluation.scores import MEASURES, SUBJECTS, percent, standard_error
from pipelines.quantities import counted
from pipelines.report.run_data import ReportData, Score

_MAX_CLASS_BARS = 24
"""If there are more classes, those between the best and the worst are folded."""


def headline(data: ReportData) -> str:
    """Summarizes a run in one or two sentences."""
    parts = []
    if data.ingest:
        counts = data.ingest
        parts.append(
            f"{counts.accepted:,} of {counted(counts.sources, 'source')} gave "
            f"{counted(counts.clips, 'clip')}."
        )
    compared = [score for score in data.scores if score.untrained is not None]
    if compared:
        better = sum(verdict(score) == "gain" for score in compared)
        most = max(compared, key=gain)
        shares = f"{percent(most.trained)} against {percent(most.untrained)}"
        parts.append(
            f"Trained features are significantly better than untrained ones on {better} of "
            f"{counted(len(compared), 'measure')}"
            + (f", most on {score_title(most)}: {shares}." if better else ".")
        )
        if data.marks:
            parts.append(mark_sentence(data.marks))
    return " ".join(parts)


def mark_sentence(marks: Sequence[str]) -> str:
    """Says what sets figures apart from those that they may be compared with."""
    return f"These are not the figures of the whole official split: {'; '.join(marks)}."


def score_title(score: Score) -> str:
    """Returns the title of a score."""
    subject = SUBJECTS.get(score.subject, score.subject)
    return f"{subject}, {MEASURES.get(score.measure, score.measure)}"


def gain(score: Score) -> float:
    """Returns trained minus untrained; minus infinity if one of them is unknown."""
    if score.untrained is None or not math.isfinite(score.trained - score.untrained):
        return -math.inf
    return score.trained - score.untrained


def verdict(score: Score) -> str:
    """Returns `gain` or `loss` if the paired interval leaves out 0, else `unsure`.

    Without an interval the difference must exceed two standard errors.
    """
    if score.gain_interval is not None:
        low, high = score.gain_interval
        return "gain" if low > 0 else "loss" if high < 0 else "unsure"
    if score.untrained is None or not math.isfinite(gain(score)):
        return "unsure"
    errors = (standard_error(share, score.num_test) for share in (score.trained, score.untrained))
    if abs(gain(score)) <= 2 * math.hypot(*errors):
        return "unsure"
    return "gain" if gain(score) > 0 else "loss"


def head_scores(scores: Sequence[Score]) -> list[Score]:
    """Returns one score per modality: the linear probe's, or else the first."""
    shown: dict[str, Score] = {}
    for score in scores:
        if score.subject in ("video", "audio") and (
            score.subject not in shown or score.measure == "linear"
        ):
            shown[score.subject] = score
    return list(shown.values())


def recall_sentences(scores: Sequence[Score], marks: Sequence[str] = ()) -> dict[str, str]:
    """Says by direction how often a clip finds its own other modality, against chance."""
    sentences = {}
    for direction in ("audio_to_video", "video_to_audio"):
        found = {one.measure: one for one in scores if one.subject == direction}
        parts = [
            _recall(found[name], rank)
            for name, rank in (("recall@1", "first"), ("recall@5", "among the first five"))
            if name in found
        ]
        if parts:
            number = next(iter(found.values())).num_test
            clips = f"{number:,} clips" if number else "all clips"
            found_text = f"Among {clips}, the own one is {', and '.join(parts)}."
            more = [mark_sentence(marks)] if marks else []
            sentences[direction] = " ".join([found_text, *more])
    return sentences


def _recall(score: Score, rank: str) -> str:
    others = []
    if score.chance is not None:
        others.append(f"by chance {percent(score.chance)}")
    if score.untrained is not None:
        others.append(f"untrained {percent(score.untrained)}")
    return f"{rank} for {percent(score.trained)}" + (f" ({', '.join(others)})" if others else "")


def class_panel(score: Score, classes: Sequence[str]) -> dict[str, Any]:
    """Sorts the classes of a score, best first, and folds the middle if there are many."""
    untrained = list(score.untrained_by_class) or [math.nan] * len(classes)
    rows = sorted(
        (
            row
            for row in zip(classes, score.trained_by_class, untrained, strict=True)
            if row[1] == row[1]
        ),
        key=lambda row: -row[1],
    )
    half = _MAX_CLASS_BARS // 2
    folded = rows[half:-half] if len(rows) > _MAX_CLASS_BARS else []
    return {
        "score": score,
        "first": rows[:half] if folded else rows,
        "folded": folded,
        "last": rows[-half:] if folded else [],
        "absent": len(classes) - len(rows),
    }
