"""When the alias of the registry moves: to a version that is better on the same dataset."""

from mlflow.entities.model_registry import ModelVersion

from pipelines.config.promote import PromoteSettings
from pipelines.registry.card import MEASURES, EncoderScores


def alias_rule(
    present: ModelVersion | None, scores: EncoderScores | None, settings: PromoteSettings
) -> tuple[bool, str]:
    """Whether the alias moves from the present version to one with these scores, and why."""
    if present is None:
        return True, "no version had it"
    holder, measure = f"version {present.version}", MEASURES[settings.metric]
    if scores is None:
        return False, f"it has no {measure} score to compare with {holder}, which has it"
    old = present.tags.get(f"xkd.evaluation.{settings.metric}")
    if old is None:
        return False, f"{holder}, which has it, has no {measure} score to compare with"
    dataset_id = present.tags.get("xkd.evaluation.dataset_id")
    if dataset_id != scores.dataset_id:
        return False, (
            f"{holder}, which has it, was scored on dataset {dataset_id}, "
            f"this version on {scores.dataset_id}"
        )
    new = scores.trained[settings.metric]
    if new > float(old):
        return True, f"its {measure} score {new:.4f} beats {float(old):.4f} of {holder}"
    return False, (
        f"its {measure} score {new:.4f} does not beat {float(old):.4f} of {holder}, which has it"
    )
