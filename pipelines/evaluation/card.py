"""The card of a suite: every figure with its interval, its clips, and what sets it apart.

    | set | subject | measure | score | 95 % interval | published | clips | dataset | remark |

A figure of an incomplete official split or of another dataset than expected has a remark; so has
one beside a published figure that the same measure did not give.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config.evaluate import EvaluateConfig
from pipelines.evaluation.intervals import Figure
from pipelines.evaluation.scores import (
    MEASURES,
    METRICS,
    SUBJECTS,
    FeatureScores,
    MeasureScore,
    Scores,
    interval_text,
)
from pipelines.files import replacing, write_json
from pipelines.storage import AnyPath

CARD_FILE = "card.md"
CARD_VALUES_FILE = "card.json"
_HEADER = (
    "set", "subject", "measure", "score", "95 % interval", "published", "minus reference",
    "test clips", "dataset", "remark",
)  # fmt: skip


@dataclass(frozen=True)
class CardEntry:
    """An evaluation of a suite."""

    name: str
    config: EvaluateConfig
    scores: Scores


def card_rows(entries: Sequence[CardEntry]) -> list[tuple[str, ...]]:
    """Returns the table, its header first."""
    rows: list[tuple[str, ...]] = [_HEADER]
    for entry in entries:
        found = entry.scores.found
        for subject, networks in found.modalities.items():
            count = networks["trained"].num_test
            for measure, one in networks["trained"].measures.items():
                rows += _measure_rows(entry, subject, measure, one, count)
        for direction, ranks in found.retrieval.items():
            for name in ("recall@1", "recall@5"):
                figure, count = ranks["trained"].figures[name], ranks["trained"].num_clips
                beside = ("", _minus_reference(found, f"{direction}/{name}"), f"{count:,}")
                rows.append(_row(entry, direction, name, figure, beside))
        if not found.modalities and not found.retrieval:
            rows.append((entry.name, *[""] * 7, entry.scores.dataset_id[:12], found.reason))
    return rows


def _measure_rows(
    entry: CardEntry, subject: str, measure: str, one: MeasureScore, count: int
) -> list[tuple[str, ...]]:
    """Returns a row for each figure; the published one and the difference stand by the first."""
    difference = _minus_reference(entry.scores.found, f"{subject}/{measure}")
    beside = (_published(entry.config, subject, measure), difference, f"{count:,}")
    rows: list[tuple[str, ...]] = []
    for name, figure in one.figures.items():
        title = f"{MEASURES[measure]} {METRICS[name]}"
        rows.append(_row(entry, subject, title, figure, beside if not rows else ("", "", "")))
    return rows


def _minus_reference(found: FeatureScores, path: str) -> str:
    change = found.over_reference.get(path)
    return f"{100 * change.value:+.1f} {interval_text(change)}".rstrip() if change else ""


def _row(
    entry: CardEntry, subject: str, title: str, figure: Figure, beside: tuple[str, str, str]
) -> tuple[str, ...]:
    is_number = title.endswith("d'")
    value = f"{figure.value:.2f}" if is_number else f"{100 * figure.value:.1f} %"
    marks = list(entry.scores.marks)
    if title.endswith("chosen on the test clips"):
        marks.append("chosen on the test clips")
    return (
        entry.name,
        SUBJECTS[subject],
        title,
        value + (" *" if marks else ""),
        "" if is_number else interval_text(figure),
        *beside,
        entry.scores.dataset_id[:12],
        "; ".join(marks),
    )


def _published(config: EvaluateConfig, subject: str, measure: str) -> str:
    found = [one for one in config.paper if (one.subject, one.measure) == (subject, measure)]
    return ", ".join(f"{one.value:g} % ({one.source})" for one in found)


def write_card(folder: AnyPath, name: str, entries: Sequence[CardEntry]) -> AnyPath:
    """Writes the card as Markdown and its values as JSON; returns the Markdown file."""
    header, *rows = card_rows(entries)
    lines = [f"# {name}", ""]
    lines += [f"- {entry.name}: {_origin(entry)}" for entry in entries]
    lines += ["", _line(header), _line(["---"] * len(header)), *map(_line, rows), ""]
    if any("*" in row[3] for row in rows):
        lines += ["\\* See the remark: this figure is not that of the whole official split.", ""]
    notes = [f"- {entry.name}: {note}" for entry in entries for note in entry.scores.found.notes]
    lines += ["## Notes", "", *notes, ""] if notes else []
    file = folder / CARD_FILE
    with replacing(file) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    write_json(folder / CARD_VALUES_FILE, _values(name, entries))
    return file


def _origin(entry: CardEntry) -> str:
    scores = entry.scores
    official = scores.official
    share = ""
    if official is not None:
        share = (
            f"; {official['dataset']}, {official['present_test']:,} of "
            f"{official['listed_test']:,} official test sources"
        )
    reference = f", compared with `{scores.reference}`" if scores.reference else ""
    return (
        f"`{scores.checkpoint}`{reference}; dataset `{scores.dataset_id}`{share}; "
        f"MLflow run `{scores.evaluate_run_id}`"
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _values(name: str, entries: Sequence[CardEntry]) -> dict[str, Any]:
    return {
        "name": name,
        "entries": [
            {
                "name": entry.name,
                "dataset_id": entry.scores.dataset_id,
                "official": entry.scores.official,
                "marks": list(entry.scores.marks),
                "figures": {
                    path: [figure.value, figure.low, figure.high]
                    for path, figure in entry.scores.found.figures().items()
                },
            }
            for entry in entries
        ],
    }
