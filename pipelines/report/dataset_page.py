"""The page of a clip dataset, in the manner of all pages (`page.py`)."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipelines.dataset.alike import NO_COPIES
from pipelines.dataset.clip_ids import write_clip_ids
from pipelines.dataset.leaks import NamedPair
from pipelines.dataset.review import Review
from pipelines.dataset.shown import ShownClip, ShownReject
from pipelines.errors import UserError
from pipelines.files import replacing, write_failure
from pipelines.media.reasons import REASONS
from pipelines.media.windows import evenly_spaced
from pipelines.quantities import byte_size, counted, duration
from pipelines.report.images import frame_image
from pipelines.report.page import page_environment, write_page
from pipelines.storage import AnyPath

_PAGE = "dataset.html"
_LEAKS = "leaks.txt"
_DUPLICATES = "duplicates.txt"
_PAIRS = "near_duplicates.csv"
_SHEET_FRAMES = 3
_LABELS_SHOWN = 40
_ROWS_SHOWN = 12
_WAVEFORM_BINS = 160


def write_dataset_page(folder: AnyPath, review: Review) -> AnyPath:
    """Writes the page and the lists beside it, and returns the path of the page.

    Raises:
        UserError: If they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_clip_ids(
            folder / _LEAKS, review.leaks, "clips trained on that are alike to clips held out"
        )
        write_clip_ids(
            folder / _DUPLICATES,
            review.duplicates,
            "clips trained on that are alike to another one trained on, which is not listed",
        )
        _write_pairs(folder / _PAIRS, review.pairs)
    except OSError as error:
        raise UserError(f"output ({folder}) cannot be written: {write_failure(error)}") from error
    return write_page(folder / _PAGE, _render(review, folder))


def _write_pairs(file: AnyPath, pairs: Sequence[NamedPair]) -> None:
    with (
        replacing(file) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as lines,
    ):
        writer = csv.writer(lines)
        writer.writerow([column.name for column in fields(NamedPair)])
        writer.writerows(astuple(pair) for pair in pairs)


def _render(review: Review, folder: AnyPath) -> str:
    """Returns the page as HTML."""
    environment = page_environment()
    environment.filters |= {"bytes": byte_size, "number": lambda count: f"{count:,}"}
    splits = sorted(review.splits, key=lambda name: -review.splits[name])
    return environment.get_template("dataset.html").render(
        review=review,
        manifest=review.manifest,
        splits=splits,
        label_rows=[
            (label, [by_split.get(split, 0) for split in splits], sum(by_split.values()))
            for label, by_split in review.labels
        ],
        labels_shown=_LABELS_SHOWN,
        rows_shown=_ROWS_SHOWN,
        tables={title: _shares(counts) for title, counts in review.tables.items()},
        meanings=REASONS,
        sheet=[_clip(clip, _SHEET_FRAMES) for clip in review.sheet],
        silent=[_clip(clip, 1) for clip in review.shown_silent],
        static=[_clip(clip, 1) for clip in review.shown_static],
        rejects={
            reason: [_reject(one) for one in shown] for reason, shown in review.rejects.items()
        },
        pair_counts=_pair_counts(review.pairs),
        pairs=[(pair, _clip(pair.first, 1), _clip(pair.second, 1)) for pair in review.shown_pairs],
        copies=sum(pair.kind not in NO_COPIES for pair in review.pairs),
        files={
            "leaks": folder / _LEAKS,
            "duplicates": folder / _DUPLICATES,
            "pairs": folder / _PAIRS,
        },
    )


def review_text(review: Review) -> str:
    """Summarizes the page in a few lines of text."""
    manifest = review.manifest
    by_split = ", ".join(f"{count:,} {split}" for split, count in review.splits.items())
    rejects = manifest.get("rejects_by_reason", {})
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejects.items())
    streams = ", ".join(f"{count:,} {kind}" for kind, count in review.streams.items())
    lines = [
        f"{counted(sum(review.splits.values()), 'clip')} of "
        f"{counted(review.num_sources, 'source')}, "
        f"{duration(review.seconds)}, {byte_size(review.stored_bytes)} stored",
        f"splits: {by_split}",
        f"streams: {streams}",
        f"labels: {len(review.labels):,}",
        f"rejected sources: {manifest.get('rejected', 0):,}" + (f" ({reasons})" if reasons else ""),
        *review.flaws.sentences(),
        *review.flaws.remarks(),
        f"silent clips: {len(review.silent):,}, static clips: {len(review.static):,}",
    ]
    for kind, splits, count in _pair_counts(review.pairs):
        lines.append(f"matches by {kind}, {splits}: {counted(count, 'pair')}")
    lines.append(
        f"to exclude: {counted(len(review.leaks), 'leak')}, "
        f"{counted(len(review.duplicates), 'duplicate')}"
    )
    return "\n".join(f"  {line}" for line in lines)


def _pair_counts(pairs: Sequence[NamedPair]) -> list[tuple[str, str, int]]:
    """Counts pairs by kind and by their splits, those across splits first."""
    counts: dict[tuple[str, str, bool], int] = {}
    for pair in pairs:
        first, second = sorted((pair.first_split, pair.second_split))
        across = first != second
        splits = f"{first} and {second}" if across else f"inside {first}"
        counts[pair.kind, splits, across] = counts.get((pair.kind, splits, across), 0) + 1
    ordered = sorted(counts.items(), key=lambda item: (not item[0][2], -item[1]))
    return [(kind, splits, count) for (kind, splits, _), count in ordered]


def _waveform_drawing(waveform: NDArray[np.int16]) -> Markup:
    """Draws the lowest and the highest sample of each interval of a waveform."""
    edges = np.arange(_WAVEFORM_BINS) * len(waveform) // _WAVEFORM_BINS
    levels = waveform.astype(np.float32) / 32768.0
    high, low = np.maximum.reduceat(levels, edges), np.minimum.reduceat(levels, edges)
    upper = [f"{i},{20 - 20 * value:.1f}" for i, value in enumerate(high)]
    lower = [f"{i},{20 - 20 * value:.1f}" for i, value in reversed(list(enumerate(low)))]
    return Markup(
        '<svg class="wave" viewBox="0 0 {} 40" preserveAspectRatio="none" role="img" '
        'aria-label="loudness over time"><path d="M0,20H{}" class="rest"/>'
        '<polygon points="{}"/></svg>'
    ).format(_WAVEFORM_BINS - 1, _WAVEFORM_BINS - 1, " ".join([*upper, *lower]))


def _shares(counts: Mapping[str, int]) -> list[tuple[str, int, float]]:
    """Adds the share of the largest count to each, in their order."""
    most = max(counts.values(), default=1)
    return [(name, count, count / most) for name, count in counts.items()]


def _clip(clip: ShownClip, num_frames: int) -> dict[str, Any]:
    frames: list[str] = []
    if clip.frames is not None:
        # The middle frame if there is room for one: the first is often black.
        count = len(clip.frames)
        chosen = evenly_spaced(count, num_frames) if num_frames > 1 else [count // 2]
        frames = [frame_image(clip.frames[i]) for i in chosen]
    has_sound = clip.waveform is not None and len(clip.waveform) >= _WAVEFORM_BINS
    return {
        "clip": clip,
        "frames": frames,
        "wave": _waveform_drawing(clip.waveform)
        if has_sound and clip.waveform is not None
        else None,
    }


def _reject(reject: ShownReject) -> dict[str, Any]:
    image = None if reject.frame is None else frame_image(reject.frame)
    return {"path": reject.path, "message": reject.message, "image": image}
