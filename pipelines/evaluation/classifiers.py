"""Classifiers of frozen features: features in, figures with intervals and outcomes out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax

from pipelines.config.evaluate import EvaluateSettings
from pipelines.evaluation import metrics
from pipelines.evaluation.attentive import score_tokens
from pipelines.evaluation.features import Features
from pipelines.evaluation.intervals import figure, mean_of
from pipelines.evaluation.outcomes import RETRIEVAL_RECALL, Outcomes, gain
from pipelines.evaluation.retrieval import retrieval_gains, retrieval_ranks, retrieval_scores
from pipelines.evaluation.scores import FeatureScores, MeasureScore, NetworkScore
from pipelines.evaluation.sides import FUSED, Sides, joined, notes_of, sides_of, why_no_scores
from pipelines.evaluation.solvers import Fitted, TrainingRows, fit_and_score
from xkd_core.encoders import MODALITIES
from xkd_core.probes import knn_votes

Array = NDArray[Any]
_MOST_IN_CONFUSION = 100
"""Classes of a confusion matrix; its size grows with the square."""


def score(features: Features, settings: EvaluateSettings) -> FeatureScores:
    """Scores all subjects of all networks; leaves out a subject that cannot be scored."""
    return score_with_outcomes(features, settings)[0]


def score_with_outcomes(
    features: Features, settings: EvaluateSettings
) -> tuple[FeatureScores, Outcomes]:
    """Scores as `score` does, and returns the result of each clip beside."""
    reason = why_no_scores(features)
    networks = sorted({path.split("/")[1] for path in features.matrices})
    found: dict[str, dict[str, NetworkScore]] = {}
    values: dict[str, Array] = {}
    for network in () if reason else networks:
        raw: dict[str, dict[str, Array]] = {}
        for subject in (*MODALITIES, *(name for name in FUSED if name in settings.fusion)):
            sides = sides_of(features, subject, network)
            if sides is None:
                continue
            fitted = _fit_all(features, subject, network, sides, settings, raw)
            raw[subject] = {
                name: _over_test(features, sides, one.scores) for name, one in fitted.items()
            }
            found.setdefault(subject, {})[network] = _network_score(features, sides, fitted)
            for name, one in fitted.items():
                path = f"{subject}/{network}/{name}"
                values[path] = _outcome(features, sides, one.scores)
    complete = {s: by for s, by in found.items() if len(by) == len(networks) and _has_scores(by)}
    ranks = retrieval_ranks(features.retrieval) if "retrieval" in settings.measures else {}
    outcomes = _outcomes(features, values, ranks)
    scores = FeatureScores(
        classes=features.classes,
        num_train=int(features.is_train.sum()),
        num_test=int(features.is_test.sum()),
        reason=reason,
        modalities=complete,
        gains=_gains(complete, outcomes) | retrieval_gains(ranks),
        retrieval=retrieval_scores(ranks, settings.retrieval_sizes),
        notes=notes_of(features),
    )
    return scores, outcomes


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


def _has_scores(networks: Mapping[str, NetworkScore]) -> bool:
    return all(network.measures for network in networks.values())


def _fit_all(
    features: Features,
    subject: str,
    network: str,
    sides: Sides,
    settings: EvaluateSettings,
    raw: Mapping[str, Mapping[str, Array]],
) -> dict[str, Fitted]:
    """Fits every measure to one subject; late fusion averages what the modalities have found."""
    measures = [name for name in settings.measures if name != "retrieval"]
    if subject == "late":
        return _late_fusion(features, sides, raw)
    fitted = {}
    for measure in measures:
        if measure == "attentive" and subject == "both":
            continue  # tokens of two widths of time have no common grid; `late` has it
        fitted[measure] = _fit(features, subject, network, sides, measure, settings)
    return fitted


def _fit(
    features: Features,
    subject: str,
    network: str,
    sides: Sides,
    measure: str,
    settings: EvaluateSettings,
) -> Fitted:
    device = torch.device("cuda") if settings.use_gpu and torch.cuda.is_available() else None
    if measure == "attentive":
        tokens = features.tokens[f"{subject}/{network}"]
        return score_tokens(tokens, sides, features, settings, device)
    kind = "layers" if measure == "layers" else "pooled"
    matrix = joined(features, subject, network, kind)
    train, test = matrix[sides.train], matrix[sides.test]
    targets = features.targets[sides.train]
    if measure == "knn":
        votes = knn_votes(
            torch.from_numpy(train),
            torch.from_numpy(targets).float(),
            torch.from_numpy(test),
            neighbors=min(settings.neighbors, len(train)),
            temperature=settings.knn_temperature,
        )
        return Fitted(votes.double().numpy(), None, True)
    rows = TrainingRows(train, targets, features.sources[sides.train], features.is_multilabel)
    of_svm = tuple(1.0 / c for c in settings.svm_c)
    return fit_and_score(
        "svm" if measure == "svm" else "linear",
        rows,
        test,
        of_svm if measure == "svm" else settings.linear_l2,
        seed=settings.seed,
        max_solver_gb=settings.max_solver_gb,
        device=device,
    )


def _late_fusion(
    features: Features, sides: Sides, raw: Mapping[str, Mapping[str, Array]]
) -> dict[str, Fitted]:
    """Averages probabilities of both modalities; decision values of an SVM as they are."""
    fitted = {}
    for measure in raw.get("video", {}):
        if measure not in raw.get("audio", {}):
            continue
        parts = [
            raw[modality][measure][_positions(features, sides.test)] for modality in MODALITIES
        ]
        if measure not in ("knn", "svm"):
            parts = [expit(p) if features.is_multilabel else softmax(p, axis=1) for p in parts]
        fitted[measure] = Fitted((parts[0] + parts[1]) / 2, None, True)
    return fitted


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
        return MeasureScore(figures, by_class, (), fitted.penalty, fitted.is_exact)
    truth = targets.argmax(axis=1)
    right = metrics.top_k(scores, truth, 1)
    figures = {"top1": figure(mean_of(right), sources)}
    if num_classes > 5:
        figures["top5"] = figure(mean_of(metrics.top_k(scores, truth, 5)), sources)
    table: tuple[tuple[int, ...], ...] = ()
    if num_classes <= _MOST_IN_CONFUSION:
        table = metrics.confusion(scores.argmax(axis=1), truth, num_classes)
    by_class = metrics.per_class(right, truth, num_classes)
    return MeasureScore(figures, by_class, table, fitted.penalty, fitted.is_exact)


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
    features: Features, values: Mapping[str, Array], ranks: Mapping[str, Array]
) -> Outcomes:
    ids = np.array(features.clip_ids, dtype=np.str_)
    return Outcomes(
        clip_ids=ids[features.is_test],
        sources=features.sources[features.is_test],
        values=values,
        targets=features.targets[features.is_test] if features.is_multilabel else None,
        retrieval_ids=ids[features.retrieval_clips],
        ranks=ranks,
    )


def _gains(found: Mapping[str, Mapping[str, NetworkScore]], outcomes: Outcomes) -> dict[str, Any]:
    """Returns trained minus untrained, paired by clip."""
    return {
        f"{subject}/{measure}": gain(
            outcomes, f"{subject}/trained/{measure}", f"{subject}/untrained/{measure}"
        )
        for subject, networks in found.items()
        if {"trained", "untrained"} <= networks.keys()
        for measure in networks["trained"].measures
    }
