"""Sentences about what an evaluation could not do as it was asked for."""

from collections.abc import Mapping

import numpy as np

from pipelines.config.evaluate import EvaluateSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.evaluation.choice import Chosen
from pipelines.evaluation.networks import Network
from pipelines.evaluation.scores import NetworkScore
from pipelines.quantities import counted

LEAST_PAIRS = 16
"""Training clips with picture and sound that features are aligned with (`alignment`)."""


def extraction_notes(
    dataset: ClipDataset,
    chosen: Chosen,
    networks: Mapping[str, Network],
    settings: EvaluateSettings,
) -> tuple[str, ...]:
    """Says where clips or encoders do not allow what was asked for."""
    notes = _split_notes(dataset, chosen, settings)
    index, rows = dataset.index, chosen.rows
    pictures = rows[index.num_frames[rows] > 0]
    squares = int((index.height[pictures] == index.width[pictures]).sum())
    if settings.num_crops > 1 and squares:
        notes.append(
            f"{squares:,} of {counted(len(pictures), 'clip')} are square: one crop instead of "
            f"{settings.num_crops}"
        )
    shorter = np.minimum(index.height[pictures], index.width[pictures])
    if settings.video_size and (small := int((shorter < settings.video_size).sum())):
        notes.append(
            f"{small:,} of {counted(len(pictures), 'clip')} have a shorter side below video_size "
            f"({settings.video_size}): enlarged"
        )
    if "retrieval" in settings.measures:
        both = (index.num_frames[rows] > 0) & index.has_audio[rows].astype(bool)
        pairs = int((both & chosen.is_train).sum())
        lacks = ""
        if pairs < LEAST_PAIRS:
            clips = counted(pairs, "training clip")
            lacks = (
                f"{clips} with picture and sound, and {LEAST_PAIRS} are needed to align features"
            )
        elif not chosen.is_test.any():
            lacks = "no clip is held out, and aligned features know the clips that align them"
        needs_heads = settings.retrieval_of == "heads" or bool(lacks)
        if settings.retrieval_of == "features" and lacks:
            notes.append(f"retrieval compares head outputs: {lacks}")
        without = [
            name
            for name, network in networks.items()
            if len(network) < 2
            or (needs_heads and any(one.head is None for one in network.values()))
        ]
        if without:
            heads = " with their projection heads" if needs_heads else ""
            notes.append(
                f"retrieval needs both encoders{heads}, which {without[0]} lacks: not measured"
            )
    return tuple(notes)


def _split_notes(dataset: ClipDataset, chosen: Chosen, settings: EvaluateSettings) -> list[str]:
    """Says which splits to learn from the dataset lacks; official lists have their own."""
    there = set(dataset.index.split.tolist())
    missing = [name for name in settings.train_splits if name not in there]
    if chosen.folds or not missing:
        return []
    splits = ", ".join(sorted(name or "without a split" for name in there)) or "none"
    return [f"train_splits: no clip lies in {', '.join(missing)}; splits of the dataset: {splits}"]


def few_neighbors(
    found: Mapping[str, Mapping[str, NetworkScore]], settings: EvaluateSettings
) -> list[str]:
    """Returns of which subjects all training clips vote, because they are fewer than asked for."""
    return [
        f"{subject}: neighbors ({settings.neighbors}) is more than the {one.num_train:,} training "
        "clips, all of which vote"
        for subject, one in ((subject, by["trained"]) for subject, by in found.items())
        if "knn" in one.measures and one.num_train < settings.neighbors
    ]
