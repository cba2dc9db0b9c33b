"""Scores of several official folds, averaged.

A figure is the mean of the folds' figures. Its interval draws sources once for all folds, so that a
video which is tested in two folds is drawn for both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.config.evaluate import EvaluateSettings
from pipelines.evaluation.features import Features
from pipelines.evaluation.intervals import Figure
from pipelines.evaluation.outcomes import Outcomes, score_of
from pipelines.evaluation.probes.classifiers import (
    Results,
    assembled,
    differences,
    fit_here,
    plan_fits,
)
from pipelines.evaluation.probes.fits import FineTune, Fit
from pipelines.evaluation.scores import FeatureScores, MeasureScore, NetworkScore
from pipelines.evaluation.sides import Sides

Array = NDArray[Any]
Planned = Sequence[tuple[Features, Sequence[tuple[Fit, Sides]]]]
"""The features of each fold, with the classifiers to fit to them."""
FitAll = Callable[[Planned, EvaluateSettings, FineTune | None], Sequence[Results]]


def score_folds(
    features: Features,
    settings: EvaluateSettings,
    fine_tune: FineTune | None = None,
    fit_all: FitAll | None = None,
) -> tuple[FeatureScores, Outcomes]:
    """Scores every fold and averages; without folds it scores the splits as they are.

    Args:
        features: Of the clips of all folds.
        settings: What to measure.
        fine_tune: Starts to fine-tune an encoder.
        fit_all: Fits the classifiers of all folds. Default: one after another in this process.
    """
    parts = [features]
    if features.folds:
        parts = [
            replace(features, is_train=fold.is_train, is_test=fold.is_test)
            for fold in features.folds
        ]
    planned = [(part, plan_fits(part, settings, fine_tune)) for part in parts]
    results: Sequence[Results]
    if fit_all is None:
        results = [fit_here(part, settings, fits, fine_tune) for part, fits in planned]
    else:
        results = fit_all(planned, settings, fine_tune)
    found = [assembled(part, settings, one) for part, one in zip(parts, results, strict=True)]
    if not features.folds:
        return found[0]
    scores = [one for one, _ in found]
    outcomes = _joined([one for _, one in found], [fold.name for fold in features.folds])
    averaged = _averaged(scores, outcomes)
    first = scores[0]
    reason = next((one.reason for one in scores if one.reason), "")
    notes = [
        f"fold {fold.name}: {note}" if note not in features.notes else note
        for fold, one in zip(features.folds, scores, strict=True)
        for note in one.notes
    ]
    if first.retrieval:
        notes.append(f"retrieval is measured on fold {features.folds[0].name} alone")
    of_retrieval = [path for path in first.gains if path.split("/")[0] in first.retrieval]
    return FeatureScores(
        classes=first.classes,
        num_train=sum(one.num_train for one in scores),
        num_test=sum(one.num_test for one in scores),
        reason=reason,
        modalities=averaged,
        gains=differences(averaged, outcomes, "untrained")
        | {path: first.gains[path] for path in of_retrieval},
        retrieval=first.retrieval,
        notes=tuple(dict.fromkeys(notes)),
        over_reference=differences(averaged, outcomes, "reference")
        | {path: one for path, one in first.over_reference.items() if path in of_retrieval},
    ), outcomes


def _joined(parts: Sequence[Outcomes], names: Sequence[str]) -> Outcomes:
    """Puts the outcomes of all folds one after another."""
    paths = set.intersection(*(set(one.values) for one in parts))
    ids = [np.char.add(f"{name}:", one.clip_ids) for name, one in zip(names, parts, strict=True)]
    targets = [one.targets for one in parts if one.targets is not None]
    return Outcomes(
        clip_ids=np.concatenate(ids),
        sources=np.concatenate([one.sources for one in parts]),
        values={path: np.concatenate([one.values[path] for one in parts]) for path in paths},
        targets=np.concatenate(targets) if targets else None,
        retrieval_ids=parts[0].retrieval_ids,
        ranks=parts[0].ranks,
        retrieval_of=parts[0].retrieval_of,
        folds=np.repeat(np.arange(len(parts)), [len(one.clip_ids) for one in parts]),
    )


def _averaged(
    scores: Sequence[FeatureScores], outcomes: Outcomes
) -> dict[str, dict[str, NetworkScore]]:
    """Averages what every fold could score."""
    found: dict[str, dict[str, NetworkScore]] = {}
    for subject in scores[0].modalities:
        if not all(subject in one.modalities for one in scores):
            continue
        for network in scores[0].modalities[subject]:
            parts = [one.modalities[subject][network] for one in scores]
            path = f"{subject}/{network}"
            found.setdefault(subject, {})[network] = NetworkScore(
                measures={
                    name: _measure(
                        [one.measures[name] for one in parts], outcomes, f"{path}/{name}"
                    )
                    for name in parts[0].measures
                },
                majority=float(np.mean([one.majority for one in parts])),
                num_train=sum(one.num_train for one in parts),
                num_test=sum(one.num_test for one in parts),
                num_sources=len(np.unique(outcomes.sources)),
            )
    return found


def _measure(parts: Sequence[MeasureScore], outcomes: Outcomes, path: str) -> MeasureScore:
    first, *others = parts[0].figures
    figures: dict[str, Figure] = {first: score_of(outcomes, path)}
    for name in others:
        values = [one.figures[name].value for one in parts]
        figures[name] = Figure(float(np.mean(values)))
    by_class = [
        None if all(value is None for value in values) else _mean_of_known(values)
        for values in zip(*(one.per_class for one in parts), strict=True)
    ]
    tables = [np.array(one.confusion) for one in parts]
    return MeasureScore(
        figures=figures,
        per_class=tuple(by_class),
        confusion=tuple(tuple(row) for row in np.sum(tables, axis=0).tolist()),
        is_exact=all(one.is_exact for one in parts),
        folds=tuple(one.score.value for one in parts),
    )


def _mean_of_known(values: Sequence[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def fold_texts(networks: Mapping[str, NetworkScore]) -> list[str]:
    """Says what each fold gave, for people."""
    return [
        f"{name} by fold: {', '.join(f'{value:.1%}' for value in one.folds)}"
        for name, one in networks["trained"].measures.items()
        if one.folds
    ]
