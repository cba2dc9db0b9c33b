"""Gathers the data of a run's report from its stages: curves, scores and pictures.

The driver computes the pictures, of a few held-out clips.
"""

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pipelines.config.base import settings_without_password
from pipelines.config.run import RunConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.evaluation.evaluate import Evaluation
from pipelines.evaluation.features import Features
from pipelines.evaluation.intervals import Figure
from pipelines.evaluation.retrieval import RECALLS
from pipelines.evaluation.scores import FeatureScores
from pipelines.ingest.summary import IngestSummary
from pipelines.media.reasons import REASONS
from pipelines.models.checkpoints import load_model
from pipelines.redaction import redacted
from pipelines.registry.promote import Registered
from pipelines.report import run_data
from pipelines.report.embedding_map import EmbeddingMap, map_embeddings
from pipelines.report.run_page import write_report
from pipelines.report.run_pictures import Pictures, galleries
from pipelines.storage import AnyPath
from pipelines.tracking.code_version import code_version
from pipelines.tracking.runs import RunRef, metric_histories, warnings_of
from pipelines.training.initial_notes import origin_lines
from pipelines.training.pretrain import PretrainResult
from xkd_core.encoders import MODALITIES

Array = NDArray[Any]
_NUM_CLIPS = 4
"""Clips whose reconstruction and attention are shown."""
_NUM_REJECTS = 50


@dataclass(frozen=True)
class RunRecord:
    """The results of the stages of a run."""

    config: RunConfig
    ingest: IngestSummary
    training: PretrainResult
    evaluation: Evaluation
    registered: Sequence[Registered]
    run: RunRef
    seconds: float


def write_run_report(path: AnyPath, record: RunRecord) -> AnyPath:
    """Writes the report of a run to `path`.

    Raises:
        UserError: if the file cannot be written.
    """
    features, scores = record.evaluation.features, record.evaluation.scores
    dataset = ClipDataset.open(str(path.parent / "clips"))
    shown = _shown_clips(features)
    model, config = load_model(record.training.checkpoint)
    pictures = Pictures(model, config, dataset, features, shown)
    data = run_data.ReportData(
        name=record.config.name,
        created=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        warnings=warnings_of(record.training.run),
        duration_seconds=record.seconds,
        ingest=_ingest_counts(record.ingest, dataset),
        metrics=_curves(record.training.run),
        classes=features.classes,
        scores=_scores(scores.found),
        marks=scores.marks,
        reconstructions=pictures.reconstructions(),
        attention=pictures.attention(),
        maps=_maps(features),
        retrievals=galleries(dataset, config, features, record.config.evaluate),
        registered=[
            run_data.RegisteredModel(
                name=model.name,
                version=model.version,
                alias=record.config.promote.alias,
                alias_moved=model.alias_moved,
                reason=model.reason,
            )
            for model in record.registered
        ],
        tracking_uri=redacted(record.run.uri),
        settings=_settings(record.config),
        provenance=_provenance(record),
        notes=_notes(record),
    )
    return write_report(path, data)


def _ingest_counts(summary: IngestSummary, dataset: ClipDataset) -> run_data.IngestCounts:
    splits, counts = np.unique(dataset.index.split, return_counts=True)
    return run_data.IngestCounts(
        sources=summary.sources,
        accepted=summary.accepted,
        rejected=summary.rejected,
        clips=summary.clips,
        ignored=sum(summary.ignored.values()),
        media_seconds=summary.media_seconds,
        flaws=summary.flaws.sentences(),
        remarks=summary.flaws.remarks(),
        splits={str(name): int(count) for name, count in zip(splits, counts, strict=True)},
        rejects_by_reason=summary.rejects_by_reason,
        reason_meanings=REASONS,
        examples=[
            run_data.Reject(row["source"], row["reason"], row["message"])
            for row in dataset.rejects(_NUM_REJECTS)
        ],
    )


def _curves(run: RunRef) -> dict[str, tuple[Array, Array]]:
    return {
        name: (np.array(steps), np.array(values))
        for name, (steps, values) in metric_histories(run).items()
    }


def _scores(scores: FeatureScores) -> list[run_data.Score]:
    found = [
        _measure_score(scores, subject, measure)
        for subject, networks in scores.modalities.items()
        for measure in networks["trained"].measures
    ]
    return found + [
        _recall_score(scores, direction, k) for direction in scores.retrieval for k in RECALLS
    ]


def _measure_score(scores: FeatureScores, subject: str, measure: str) -> run_data.Score:
    networks = scores.modalities[subject]
    trained, untrained = networks["trained"], networks.get("untrained")
    gain = scores.gains.get(f"{subject}/{measure}")
    return run_data.Score(
        subject=subject,
        measure=measure,
        trained=trained.accuracy[measure],
        untrained=untrained.accuracy.get(measure) if untrained else None,
        chance=trained.majority,
        num_test=trained.num_test,
        trained_by_class=_numbers(trained.by_class[measure]),
        untrained_by_class=_numbers(untrained.by_class.get(measure, ())) if untrained else (),
        interval=_bounds(trained.measures[measure].score),
        gain_interval=_bounds(gain) if gain else None,
    )


def _recall_score(scores: FeatureScores, direction: str, k: int) -> run_data.Score:
    networks, name = scores.retrieval[direction], f"recall@{k}"
    trained, untrained = networks["trained"], networks.get("untrained")
    gain = scores.gains.get(f"{direction}/{name}")
    return run_data.Score(
        subject=direction,
        measure=name,
        trained=trained.figures[name].value,
        untrained=untrained.figures[name].value if untrained else None,
        chance=trained.chance[name],
        num_test=trained.num_clips,
        interval=_bounds(trained.figures[name]),
        gain_interval=_bounds(gain) if gain else None,
    )


def _bounds(figure: Figure) -> tuple[float, float] | None:
    if figure.low is None or figure.high is None:
        return None
    return figure.low, figure.high


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _shown_clips(features: Features) -> list[int]:
    """Picks held-out clips with both modalities, of different classes if possible."""
    both = np.isfinite(features.matrices["video/trained"]).all(axis=1)
    both &= np.isfinite(features.matrices["audio/trained"]).all(axis=1)
    candidates = np.flatnonzero(both & features.is_test)
    if not len(candidates):
        candidates = np.flatnonzero(both)
    first_of_class: dict[int, int] = {}
    for clip in candidates.tolist():
        first_of_class.setdefault(int(features.labels[clip]), clip)
    rest = [clip for clip in candidates.tolist() if clip not in first_of_class.values()]
    return [*first_of_class.values(), *rest][:_NUM_CLIPS]


def _maps(features: Features) -> list[EmbeddingMap]:
    chosen = features.is_test if features.is_test.any() else features.is_train
    labels = [features.classes[label] if label >= 0 else "" for label in features.labels[chosen]]
    named = labels if any(labels) else ()
    maps = [
        map_embeddings(modality, features.matrices[f"{modality}/trained"][chosen], named)
        for modality in MODALITIES
    ]
    return [plane for plane in maps if plane is not None]


def _origins(record: RunRecord) -> dict[str, str]:
    return origin_lines(record.training.began_from)


def _notes(record: RunRecord) -> dict[str, str]:
    notes = {}
    if reason := record.evaluation.scores.found.reason:
        notes["scores"] = f"Nothing is scored, because {reason}."
    if origins := _origins(record):
        begun = " and ".join(f"{name} from {text}" for name, text in origins.items())
        notes["models"] = f"Training did not begin with new weights: {begun}."
    return notes


def _settings(config: RunConfig) -> str:
    return yaml.safe_dump(settings_without_password(config), sort_keys=False, width=100)


def _server(run: RunRef) -> dict[str, str]:
    command = run.server_command()
    return {"served by": command} if command else {}


def _provenance(record: RunRecord) -> dict[str, str]:
    tools = ("torch", "ray", "mlflow", "av", "timm", "numpy")
    return {
        "dataset": record.evaluation.scores.dataset_id,
        "checkpoint": f"step {record.evaluation.scores.step}",
        **{f"{name} began from": text for name, text in _origins(record).items()},
        "MLflow run": record.run.run_id,
        "MLflow page": record.run.page(),
        **_server(record.run),
        "code": code_version(),
        "Python": platform.python_version(),
        **{tool: version(tool) for tool in tools},
    }
