"""The labelled clips of both sides, training and test, that have a modality or both."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.features import Features
from pipelines.quantities import counted
from xkd_core.encoders import MODALITIES

Array = NDArray[Any]
FUSED = ("both", "late")
"""Subjects that need both modalities."""
MISSING = ("both_video_only", "both_audio_only")
"""The classifier of `both` on test clips whose sound, or picture, is missing."""


@dataclass(frozen=True)
class Sides:
    """Which clips train a classifier and which are scored, as indices into the features."""

    train: Array
    test: Array


def sides_of(features: Features, subject: str, network: str) -> Sides | None:
    """Returns the clips of a subject; None if a side has none, or training has one class."""
    if not _has_encoders(features, subject, network):
        return None
    train, test = _labelled_sides(features, subject, network)
    if not len(train) or not len(test) or not _can_be_told_apart(features.targets[train]):
        return None
    return Sides(train, test)


def _modalities(subject: str) -> tuple[str, ...]:
    return MODALITIES if subject in FUSED else (subject,)


def _has_encoders(features: Features, subject: str, network: str) -> bool:
    return all(f"{one}/{network}" in features.matrices for one in _modalities(subject))


def _labelled_sides(features: Features, subject: str, network: str) -> tuple[Array, Array]:
    """Returns the labelled training and test clips with finite features of a subject."""
    there = features.targets.any(axis=1)
    for modality in _modalities(subject):
        there &= np.isfinite(features.matrices[f"{modality}/{network}"]).all(axis=1)
    return np.flatnonzero(there & features.is_train), np.flatnonzero(there & features.is_test)


def _why_not(features: Features, subject: str) -> str:
    """Returns why a subject of the trained network has no score; empty if it has one."""
    train, test = _labelled_sides(features, subject, "trained")
    for side, clips in (("training", train), ("test", test)):
        if not len(clips):
            return f"no labelled {side} clip has features of it"
    if not _can_be_told_apart(features.targets[train]):
        count = counted(int(features.targets[train].any(axis=0).sum()), "class", "classes")
        return f"its labelled training clips have {count}, and a probe needs two"
    return ""


def _can_be_told_apart(targets: Array) -> bool:
    """Whether a class has training clips with it and without it."""
    return bool((targets.any(axis=0) & ~targets.all(axis=0)).any())


def joined(
    features: Features, subject: str, network: str, clips: Array, kind: str = "pooled"
) -> Array:
    """Returns features of clips, of a modality or of both: each of length 1, then concatenated.

    Source: XKD, arXiv:2211.13929, section 5 (Kinetics-Sound).
    """
    matrices = features.layers if kind == "layers" else features.matrices
    if subject != "both":
        return matrices[f"{subject}/{network}"][clips]
    parts = [matrices[f"{modality}/{network}"][clips] for modality in MODALITIES]
    with np.errstate(invalid="ignore"):  # features that are not finite are left out by `sides_of`
        return np.concatenate([part / _length(part) for part in parts], axis=1)


def joined_without(
    features: Features, network: str, kind: str, missing: str, sides: Sides
) -> Array:
    """Returns the joined features of the test clips as they are when a modality is missing.

    In its part stands the mean of the training clips, which tells no class from another.
    """
    rows = joined(features, "both", network, sides.test, kind)
    width = features.layers if kind == "layers" else features.matrices
    first = width[f"{MODALITIES[0]}/{network}"].shape[1]
    part = slice(0, first) if missing == MODALITIES[0] else slice(first, None)
    rows[:, part] = joined(features, "both", network, sides.train, kind)[:, part].mean(axis=0)
    return rows


def _length(rows: Array) -> Array:
    length: Array = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return length


def why_no_scores(features: Features) -> str:
    """Returns why nothing can be scored; empty if something can."""
    labelled = features.targets.any(axis=1)
    if not features.clip_ids:
        return "no clip lies in a split that is scored"
    if not features.classes:
        return "no clip has a label"
    if not (features.is_test & labelled).any():
        return "no labelled clip is held out"
    train = features.targets[features.is_train & labelled]
    if not len(train) or not _can_be_told_apart(train):
        num_classes = int(train.any(axis=0).sum())
        classes = counted(num_classes, "class", "classes")
        return f"the clips trained on have {classes}, and a probe needs two"
    return ""


def notes_of(features: Features) -> tuple[str, ...]:
    """Returns a sentence for each kind of clip that a score leaves out or cannot get right."""
    notes = list(features.notes)
    labelled = features.targets.any(axis=1)
    for name, side in (("training", features.is_train), ("test", features.is_test)):
        if labelled.any() and (missing := int((side & ~labelled).sum())):
            clips = counted(int(side.sum()), f"{name} clip")
            notes.append(f"{missing:,} of {clips} without a label: left out")
    for path, matrix in features.matrices.items():
        there = features.has[path.split("/")[0]]
        if broken := int((there & ~np.isfinite(matrix).all(axis=1)).sum()):
            notes.append(
                f"{path}: {counted(broken, 'clip')} with features that are not finite: left out"
            )
    notes += _unscored(features)
    seen = features.targets[features.is_train].any(axis=0)
    unseen = features.targets[features.is_test].any(axis=0) & ~seen
    if labelled.any() and unseen.any():
        names = [features.classes[i] for i in np.flatnonzero(unseen)]
        count = int((features.targets[features.is_test][:, unseen]).any(axis=1).sum())
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        notes.append(
            f"{counted(count, 'test clip')} of classes without a training clip ({shown}): "
            "counted as wrong"
        )
    return tuple(notes)


def _unscored(features: Features) -> list[str]:
    """Returns a sentence for each modality that clips have and that cannot be scored."""
    if why_no_scores(features):
        return []  # which says it of all of them
    return [
        f"{modality} is not scored: {reason}"
        for modality in MODALITIES
        if _has_encoders(features, modality, "trained") and features.has[modality].any()
        if (reason := _why_not(features, modality))
    ]
