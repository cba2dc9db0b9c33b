"""The figures of an evaluation that a registered encoder carries."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.evaluation.intervals import Figure
from pipelines.evaluation.outcomes import RETRIEVAL_RECALL
from pipelines.evaluation.scores import FeatureScores, Scores


@dataclass(frozen=True)
class EncoderScores:
    """Scores of one encoder's frozen features, from 0 to 1."""

    dataset_id: str
    run_id: str
    """The evaluation's."""
    num_classes: int
    """0 if only retrieval was measured, which needs no labels."""
    num_test: int
    majority: float
    """Accuracy of a classifier that always answers the most frequent class; 0 without labels."""
    num_sources: int
    trained: Mapping[str, Figure]
    untrained: Mapping[str, Figure]
    """Of the same network before training; empty if it was not evaluated."""
    marks: tuple[str, ...] = ()
    """What sets the figures apart from those of the whole official split (`Scores.marks`)."""


def encoder_scores(scores: Scores | None, modality: str) -> EncoderScores | None:
    """Returns the scores of one modality; None if it was not scored."""
    if scores is None:
        return None
    found = scores.found
    trained = _scores_of(found, modality, "trained")
    if not trained:
        return None
    labelled = found.modalities.get(modality, {}).get("trained")
    ranks = found.retrieval.get(_asking(modality), {}).get("trained")
    num_ranked = ranks.num_clips if ranks else 0  # one clip of each source
    return EncoderScores(
        dataset_id=scores.dataset_id,
        run_id=scores.evaluate_run_id,
        num_classes=len(found.classes) if labelled else 0,
        num_test=labelled.num_test if labelled else num_ranked,
        majority=labelled.majority if labelled else 0.0,
        num_sources=labelled.num_sources if labelled else num_ranked,
        trained=trained,
        untrained=_scores_of(found, modality, "untrained"),
        marks=scores.marks,
    )


def _scores_of(found: FeatureScores, modality: str, network: str) -> dict[str, Figure]:
    """Returns the score of each measure; of retrieval the recall@5 of this modality asking."""
    labelled = found.modalities.get(modality, {}).get(network)
    result = {name: one.score for name, one in labelled.measures.items()} if labelled else {}
    ranks = found.retrieval.get(_asking(modality), {}).get(network)
    if ranks:
        result["retrieval"] = ranks.figures[f"recall@{RETRIEVAL_RECALL}"]
    return result


def _asking(modality: str) -> str:
    return "video_to_audio" if modality == "video" else "audio_to_video"
