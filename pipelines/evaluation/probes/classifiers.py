"""Classifiers of frozen features: features in, figures with intervals and outcomes out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.config.evaluate import EvaluateSettings
from pipelines.evaluation import metrics
from pipelines.evaluation.alignment import common_space, compared
from pipelines.evaluation.features import Features
from pipelines.evaluation.intervals import Figure, Statistic, figure, mean_of
from pipelines.evaluation.notes import few_neighbors
from pipelines.evaluation.outcomes import RETRIEVAL_RECALL, Outcomes, gain
from pipelines.evaluation.probes.fits import FineTune, Fit, Fitter, late_fusion, planned_fits
from pipelines.evaluation.probes.solvers import Fitted
from pipelines.evaluation.retrieval import (
    DIRECTIONS,
    retrieval_gains,
    retrieval_ranks,
    retrieval_scores,
)
from pipelines.evaluation.scores import FeatureScores, MeasureScore, NetworkScore
from pipelines.evaluation.sides import FUSED, Sides, notes_of, sides_of, why_no_scores
from pipelines.quantities import counted
from xkd_core.encoders import MODALITIES

Array = NDArray[Any]
Results = Mapping[Fit, Mapping[str, Fitted]]
"""What each classifier gave, by subject."""
_MOST_IN_CONFUSION = 100
"""Classes of a confusion matrix; its size grows with the square."""


def score(features: Features, settings: EvaluateSettings) -> FeatureScores:
    """Scores all subjects of all networks; leaves out a subject that cannot be scored."""
    return score_with_outcomes(features, settings)[0]


def score_with_outcomes(
    features: Features, settings: EvaluateSettings, fine_tune: FineTune | None = None
) -> tuple[FeatureScores, Outcomes]:
    """Scores as `score` does, and returns the result of each clip beside."""
    planned = plan_fits(features, settings, fine_tune)
    return assembled(features, settings, fit_here(features, settings, planned, fine_tune))


def plan_fits(
    features: Features, settings: EvaluateSettings, fine_tune: FineTune | None
) -> list[tuple[Fit, Sides]]:
    """Returns the classifiers to fit; none if nothing can be scored."""
    if why_no_scores(features):
        return []
    return planned_fits(features, settings, fine_tunes=fine_tune is not None)


def fit_here(
    features: Features,
    settings: EvaluateSettings,
    planned: Sequence[tuple[Fit, Sides]],
    fine_tune: FineTune | None = None,
) -> Results:
    """Fits classifiers one after another in this process, while fine-tuning goes on beside."""
    tuned = {
        fit: fine_tune(features, fit.subject, sides)
        for fit, sides in planned
        if fine_tune is not None and fit.measure == "finetune"
    }
    found = {
        fit: Fitter(features, fit.network, settings).fit(fit.subject, sides, fit.measure)
        for fit, sides in planned
        if fit not in tuned
    }
    return found | {fit: {fit.subject: wait()} for fit, wait in tuned.items()}


def assembled(
    features: Features, settings: EvaluateSettings, results: Results
) -> tuple[FeatureScores, Outcomes]:
    """Computes figures and differences from the scores of the test clips."""
    reason = why_no_scores(features)
    found: dict[str, dict[str, NetworkScore]] = {}
    values: dict[str, Array] = {}
    for network in () if reason else sorted({path.split("/")[1] for path in features.matrices}):
        for subject, (sides, fitted) in _by_subject(features, settings, network, results).items():
            found.setdefault(subject, {})[network] = _network_score(features, sides, fitted)
            for name, one in fitted.items():
                values[f"{subject}/{network}/{name}"] = _outcome(features, sides, one.scores)
    complete = {
        subject: {network: one for network, one in by.items() if one.measures}
        for subject, by in found.items()
        if by.keys() == _having(features, subject) and "trained" in by and by["trained"].measures
    }
    ranks = {}
    if "retrieval" in settings.measures:
        ranks = retrieval_ranks(common_space(features, settings))
    if f"{DIRECTIONS[0]}/trained" not in ranks:
        ranks = {}
    outcomes = _outcomes(features, values, ranks, settings)
    scores = FeatureScores(
        classes=features.classes,
        num_train=int(features.is_train.sum()),
        num_test=int(features.is_test.sum()),
        reason=reason,
        modalities=complete,
        gains=differences(complete, outcomes, "untrained") | retrieval_gains(ranks),
        retrieval=retrieval_scores(ranks, settings.retrieval_sizes),
        notes=(
            *notes_of(features),
            *few_neighbors(complete, settings),
            *_unretrieved(features, settings, ranks),
        ),
        over_reference=differences(complete, outcomes, "reference")
        | retrieval_gains(ranks, "reference"),
    )
    return scores, outcomes


def _unretrieved(
    features: Features, settings: EvaluateSettings, ranks: Mapping[str, Array]
) -> list[str]:
    """Returns why retrieval has no score, unless a note of the features says it."""
    is_told = any("not measured" in note for note in features.notes)
    if "retrieval" not in settings.measures or ranks or is_told or not _having(features, "both"):
        return []
    count = len(features.retrieval_clips)
    if count < 2:
        clips = counted(count, "clip")
        return [f"retrieval is not measured: {clips} to search with picture and sound"]
    return ["retrieval is not measured: features or head outputs are missing or not finite"]


def _having(features: Features, subject: str) -> set[str]:
    """Returns the networks that have the encoders of a subject."""
    needed = (subject,) if subject in MODALITIES else MODALITIES
    by = [{path.split("/")[1] for path in features.matrices if path.startswith(m)} for m in needed]
    return set.intersection(*by)


def _by_subject(
    features: Features, settings: EvaluateSettings, network: str, results: Results
) -> dict[str, tuple[Sides, dict[str, Fitted]]]:
    """Returns what the classifiers of a network found, by subject, with late fusion of both."""
    found: dict[str, tuple[Sides, dict[str, Fitted]]] = {}
    for subject in (*MODALITIES, *(name for name in FUSED if name in settings.fusion)):
        sides = sides_of(features, subject, network)
        if sides is None:
            continue
        if subject == "late":
            by_modality = {m: found[m][1] for m in MODALITIES}
            clips_of = {m: found[m][0].test for m in MODALITIES}
            fused = late_fusion(by_modality, clips_of, sides.test, features.is_multilabel)
            found["late"] = sides, fused
            continue
        found[subject] = sides, {}
        for measure in settings.measures:
            for name, one in results.get(Fit(network, subject, measure), {}).items():
                found.setdefault(name, (sides, {}))[1][measure] = one
    return found


def side_scores(scores: FeatureScores, network: str = "trained") -> dict[str, float]:
    """Returns one number a modality and measure, as `video/knn`, for curves and sweeps.

    `video/retrieval` is the recall@5 of pictures that look for their sound, `audio/retrieval` that
    of sounds that look for their picture.
    """
    found = {
        f"{modality}/{measure}": value
        for modality in MODALITIES
        if modality in scores.modalities
        for measure, value in scores.modalities[modality][network].accuracy.items()
    }
    for direction, networks in scores.retrieval.items():
        asks = direction.split("_to_")[0]
        recall = networks[network].figures[f"recall@{RETRIEVAL_RECALL}"]
        found[f"{asks}/retrieval"] = recall.value
    return found


def _network_score(features: Features, sides: Sides, fitted: Mapping[str, Fitted]) -> NetworkScore:
    targets, sources = features.targets[sides.test], features.sources[sides.test]
    counts = targets.sum(axis=0)
    majority = float(counts.max() / len(targets))
    if features.is_multilabel:  # a random order has the share of the class as its precision
        majority = float((counts[counts > 0] / len(targets)).mean())
    return NetworkScore(
        measures={
            name: _measure_score(one, targets, sources, features.is_multilabel)
            for name, one in fitted.items()
        },
        majority=majority,
        num_train=len(sides.train),
        num_test=len(sides.test),
        num_sources=len(np.unique(sources)),
    )


def _measure_score(
    fitted: Fitted, targets: Array, sources: Array, is_multilabel: bool
) -> MeasureScore:
    scores, num_classes = fitted.scores, targets.shape[1]
    if is_multilabel:
        statistics = {
            "map": metrics.average_precision(scores, targets),
            "auc": metrics.area_under_curve(scores, targets),
            "d_prime": metrics.d_prime(scores, targets),
        }
        by_class = tuple(
            float(metrics.average_precision(scores[:, [i]], targets[:, [i]])(weights)[0])
            if 0 < targets[:, i].sum() < len(targets)
            else None
            for weights in [np.ones((1, len(targets)))]
            for i in range(num_classes)
        )
        figures = {name: figure(one, sources) for name, one in statistics.items()}
        best = [metrics.average_precision(one, targets) for one in fitted.candidates]
        figures |= _chosen_on_test("map", best, sources)
        return MeasureScore(figures, by_class, (), fitted.penalty, fitted.is_exact)
    truth = targets.argmax(axis=1)
    right = metrics.top_k(scores, truth, 1)
    figures = {"top1": figure(mean_of(right), sources)}
    if num_classes > 5:
        figures["top5"] = figure(mean_of(metrics.top_k(scores, truth, 5)), sources)
    best = [mean_of(metrics.top_k(one, truth, 1)) for one in fitted.candidates]
    figures |= _chosen_on_test("top1", best, sources)
    table: tuple[tuple[int, ...], ...] = ()
    if num_classes <= _MOST_IN_CONFUSION:
        table = metrics.confusion(scores.argmax(axis=1), truth, num_classes)
    by_class = metrics.per_class(right, truth, num_classes)
    return MeasureScore(figures, by_class, table, fitted.penalty, fitted.is_exact)


def _chosen_on_test(name: str, of: Sequence[Statistic], sources: Array) -> dict[str, Figure]:
    """Returns the best figure of all penalties or epochs, which the test clips have chosen."""
    found = [figure(one, sources) for one in of]
    return {f"{name}_chosen_on_test": max(found, key=lambda one: one.value)} if found else {}


def _positions(features: Features, clips: Array) -> Array:
    """Places of clips among the test clips."""
    return np.searchsorted(np.flatnonzero(features.is_test), clips)


def _over_test(features: Features, sides: Sides, values: Array) -> Array:
    """Spreads values of the scored clips over all test clips, NaN elsewhere."""
    shape = (int(features.is_test.sum()), *values.shape[1:])
    spread = np.full(shape, np.nan)
    spread[_positions(features, sides.test)] = values
    return spread


def _outcome(features: Features, sides: Sides, scores: Array) -> Array:
    if features.is_multilabel:
        return _over_test(features, sides, scores)
    truth = features.targets[sides.test].argmax(axis=1)
    return _over_test(features, sides, metrics.top_k(scores, truth, 1))


def _outcomes(
    features: Features,
    values: Mapping[str, Array],
    ranks: Mapping[str, Array],
    settings: EvaluateSettings,
) -> Outcomes:
    ids = np.array(features.clip_ids, dtype=np.str_)
    return Outcomes(
        clip_ids=ids[features.is_test],
        sources=features.sources[features.is_test],
        values=values,
        targets=features.targets[features.is_test] if features.is_multilabel else None,
        retrieval_ids=ids[features.retrieval_clips],
        ranks=ranks,
        retrieval_of=compared(features, settings),
    )


def differences(
    found: Mapping[str, Mapping[str, NetworkScore]], outcomes: Outcomes, other: str
) -> dict[str, Figure]:
    """Returns trained minus another network, paired by clip."""
    return {
        f"{subject}/{measure}": gain(
            outcomes, f"{subject}/trained/{measure}", f"{subject}/{other}/{measure}"
        )
        for subject, networks in found.items()
        if {"trained", other} <= networks.keys()
        for measure in networks["trained"].measures
        if measure in networks[other].measures
    }
