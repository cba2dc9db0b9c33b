"""Fits the measures to the training clips of a subject and scores its test clips.

A classifier sees one row for each clip, or, where scores are averaged, one for each view:

    views of a test clip    probabilities          score of the clip
    left crop               0.7  0.2  0.1
    right crop              0.5  0.4  0.1          0.6  0.3  0.1
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax

from pipelines.config.evaluate import EvaluateSettings
from pipelines.evaluation.embedder import mean_by
from pipelines.evaluation.features import Features
from pipelines.evaluation.probes.attentive import score_tokens
from pipelines.evaluation.probes.solvers import Fitted, TrainingRows, fit_and_score
from pipelines.evaluation.sides import MISSING, Sides, joined, joined_without, sides_of
from xkd_core.classifiers.probes import knn_votes
from xkd_core.encoders import MODALITIES, Modality

Array = NDArray[Any]
FineTune = Callable[[Features, str, Sides], Callable[[], Fitted]]
"""Starts to fine-tune the trained encoder of a subject; the result waits for its scores."""


@dataclass(frozen=True)
class Fit:
    """A classifier to fit."""

    network: str
    subject: str
    measure: str


def planned_fits(
    features: Features, settings: EvaluateSettings, *, fine_tunes: bool
) -> list[tuple[Fit, Sides]]:
    """Returns the classifiers of all networks and subjects that have clips of both sides."""
    networks = sorted({path.split("/")[1] for path in features.matrices})
    subjects = (*MODALITIES, *(("both",) if "both" in settings.fusion else ()))
    found = []
    for network in networks:
        for subject in subjects:
            sides = sides_of(features, subject, network)
            if sides is None:
                continue
            for measure in settings.measures:
                if _is_possible(network, subject, measure, fine_tunes=fine_tunes):
                    found.append((Fit(network, subject, measure), sides))
    return found


def _is_possible(network: str, subject: str, measure: str, *, fine_tunes: bool) -> bool:
    """Tokens of two modalities have no common grid; `late` joins what they find."""
    if measure == "retrieval":
        return False
    if measure == "finetune" and not (fine_tunes and network == "trained"):
        return False
    return subject != "both" or measure not in ("attentive", "finetune")


def kind_of(measure: str) -> str:
    """Returns which features a measure is of."""
    return "layers" if measure == "layers" else "pooled"


@dataclass(frozen=True)
class Fitter:
    """Fits the measures to one network's features."""

    features: Features
    network: str
    settings: EvaluateSettings

    def fit(self, subject: str, sides: Sides, measure: str) -> dict[str, Fitted]:
        """Returns the scores of the test clips by subject.

        The joined classifiers also give those of clips without picture, and without sound.
        """
        fitted = self._fit(subject, sides, measure)
        if subject == "both" and "missing" in self.settings.fusion:
            return dict(zip(("both", *MISSING), _parts(fitted, 3), strict=True))
        return {subject: fitted}

    def _fit(self, subject: str, sides: Sides, measure: str) -> Fitted:
        settings, features = self.settings, self.features
        device = torch.device("cuda") if settings.use_gpu and torch.cuda.is_available() else None
        if measure == "attentive":
            tokens = features.tokens[f"{subject}/{self.network}"]
            return score_tokens(tokens, sides, features, settings, device)
        train, owners = self._rows(subject, sides.train, measure)
        test, test_owners = self._rows(subject, sides.test, measure)
        if subject == "both" and "missing" in settings.fusion:
            kind = kind_of(measure)
            others = [
                joined_without(features, self.network, kind, modality, sides)
                for modality in reversed(MODALITIES)
            ]
            test = np.concatenate([test, *others])
            test_owners = np.arange(len(test))
        targets = features.targets[owners]
        rows = TrainingRows(train, targets, features.sources[owners], features.is_multilabel)
        fitted = _fit_rows(measure, rows, test, settings, device)
        return self._averaged(fitted, measure, test_owners)

    def _rows(self, subject: str, clips: Array, measure: str) -> tuple[Array, Array]:
        """Returns the rows of clips, and the clip of each row."""
        kind = kind_of(measure)
        path = f"{subject}/{self.network}"
        if path not in self.features.view_owners:
            return joined(self.features, subject, self.network, clips, kind), clips
        owners = self.features.view_owners[path]
        mine = np.isin(owners, clips)
        return self.features.views[f"{kind}/{path}"][mine], owners[mine]

    def _averaged(self, fitted: Fitted, measure: str, owners: Array) -> Fitted:
        """Averages the scores of the views of each clip."""
        clips, number = np.unique(owners, return_inverse=True)
        if len(clips) == len(owners):
            return fitted
        is_decision = measure == "svm"

        def mean(scores: Array) -> Array:
            if not (is_decision or fitted.is_probability):
                scores = probabilities(scores, self.features.is_multilabel)
            return mean_by(scores, number, len(clips))

        return replace(
            fitted,
            scores=mean(fitted.scores),
            candidates=tuple(map(mean, fitted.candidates)),
            is_probability=not is_decision,
        )


def _fit_rows(
    measure: str,
    rows: TrainingRows,
    test: Array,
    settings: EvaluateSettings,
    device: torch.device | None,
) -> Fitted:
    if measure == "knn":
        votes = knn_votes(
            torch.from_numpy(rows.features),
            torch.from_numpy(rows.targets).float(),
            torch.from_numpy(test),
            neighbors=min(settings.neighbors, len(rows.features)),
            temperature=settings.knn_temperature,
        )
        return Fitted(votes.double().numpy(), None, True, is_probability=True)
    of_svm = tuple(1.0 / c for c in settings.svm_c)
    return fit_and_score(
        "svm" if measure == "svm" else "linear",
        rows,
        test,
        of_svm if measure == "svm" else settings.linear_l2,
        seed=settings.seed,
        max_solver_gb=settings.max_solver_gb,
        device=device,
        with_candidates=settings.selection == "test",
    )


def _parts(fitted: Fitted, count: int) -> list[Fitted]:
    """Splits scores of several versions of the same clips."""
    scores = np.split(fitted.scores, count)
    candidates = [np.split(one, count) for one in fitted.candidates]
    return [
        replace(fitted, scores=scores[part], candidates=tuple(one[part] for one in candidates))
        for part in range(count)
    ]


def late_fusion(
    by_modality: Mapping[Modality, Mapping[str, Fitted]],
    clips_of: Mapping[Modality, Array],
    clips: Array,
    is_multilabel: bool,
) -> dict[str, Fitted]:
    """Averages probabilities of both modalities; decision values of an SVM as they are.

    Args:
        by_modality: What each modality found, by measure.
        clips_of: Test clips of each modality, ascending.
        clips: Test clips that have both.
        is_multilabel: Whether a clip has several labels.
    """
    fitted: dict[str, Fitted] = {}
    for measure in by_modality["video"]:
        if measure not in by_modality["audio"]:
            continue
        parts = []
        for modality in MODALITIES:
            one = by_modality[modality][measure]
            scores = one.scores[np.searchsorted(clips_of[modality], clips)]
            if measure != "svm" and not one.is_probability:
                scores = probabilities(scores, is_multilabel)
            parts.append(scores)
        fitted[measure] = Fitted(
            (parts[0] + parts[1]) / 2, None, True, is_probability=measure != "svm"
        )
    return fitted


def probabilities(log_odds: Array, is_multilabel: bool) -> Array:
    """Turns log-odds into probabilities: of each label, or of the classes together."""
    shares: Array = expit(log_odds) if is_multilabel else softmax(log_odds, axis=1)
    return shares
