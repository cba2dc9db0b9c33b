"""Whether the alias moves to a version: the paired interval of its score minus the present one's.

The evaluation of a version logs the result of each clip as `outcomes.npz`. Clips that both
evaluations scored are compared one by one, and sources are drawn to see how far chance goes:

    new minus present   +2.1   interval  +0.4 ... +3.9    better       not worse
                        +2.1             -0.5 ... +4.6    not better   not worse
                        -2.1             -3.9 ... -0.4    not better   worse
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.config.promote import PromoteSettings
from pipelines.evaluation.intervals import Figure
from pipelines.evaluation.outcomes import OUTCOMES_FILE, Outcomes, paired, paired_retrieval
from pipelines.evaluation.scores import MEASURES
from pipelines.registry.card import EncoderScores
from pipelines.registry.versions import CODE_TAG


@dataclass(frozen=True)
class Candidate:
    """A version that may get the alias."""

    scores: EncoderScores | None
    outcomes: Outcomes | None
    settings: PromoteSettings


def verdict(
    client: MlflowClient,
    name: str,
    aliases: Mapping[str, Any],
    number: str | None,
    candidate: Candidate,
) -> tuple[bool, str]:
    """Returns whether the alias moves to a version, and says so in one line.

    Args:
        client: Of the registry.
        name: The registered model.
        aliases: Its versions by alias, as they are now.
        number: The version; None for one that is not registered yet.
        candidate: What is known of the version.
    """
    alias = candidate.settings.alias
    holder = aliases.get(alias)
    if holder is not None and str(holder) == number:
        return False, f"keeps the alias {alias}"
    present = None if holder is None else client.get_model_version(name, str(holder))
    moves, reason = alias_rule(client, present, candidate)
    start = f"gets the alias {alias}" if moves else f"registered without the alias {alias}"
    return moves, f"{start}: {reason}"


def alias_rule(
    client: MlflowClient, present: ModelVersion | None, candidate: Candidate
) -> tuple[bool, str]:
    """Returns whether the alias moves from its present version to the candidate, and why."""
    scores, settings = candidate.scores, candidate.settings
    if present is None:
        return True, "no version had it"
    holder, measure = f"version {present.version}", MEASURES[settings.metric]
    if scores is None or settings.metric not in scores.trained:
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
    new = scores.trained[settings.metric].value
    if new == float(old) and CODE_TAG not in present.tags:
        return True, f"its {measure} score {new:.4f} is that of {holder}, which embed refuses"
    change = _paired_change(client, present, candidate)
    if change is None or change.low is None or change.high is None:
        return False, (
            f"{holder}, which has it, has no results of each clip to compare with: "
            "evaluate and promote its checkpoint again"
        )
    shown = f"its {measure} score {new:.4f} minus {float(old):.4f} of {holder}"
    if settings.metric == "retrieval":
        shown = f"its mean recall@5 of both directions minus that of {holder}"
    moves, why = _judged(change, settings.rule)
    return moves, f"{shown} is {change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}], {why}"


def _judged(change: Figure, rule: str) -> tuple[bool, str]:
    if rule == "better":
        if change.is_above_zero:
            return True, "all of it above 0"
        return False, "not all of it above 0 as promote.rule=better asks"
    if change.is_below_zero:
        return False, "all of it below 0: worse"
    return True, "not all of it below 0"


def _paired_change(
    client: MlflowClient, present: ModelVersion, candidate: Candidate
) -> Figure | None:
    """Returns new minus present; None if a result is missing or they share no clip."""
    ours, theirs = candidate.outcomes, _outcomes_of(client, present)
    if ours is None or theirs is None:
        return None
    path = f"{present.tags['xkd.modality']}/trained/{candidate.settings.metric}"
    try:
        if candidate.settings.metric == "retrieval":
            return paired_retrieval(ours, theirs)
        return paired(ours, path, theirs, path)
    except KeyError:
        return None


def _outcomes_of(client: MlflowClient, version: ModelVersion) -> Outcomes | None:
    """Reads what the evaluation of a version logged."""
    run_id = version.tags.get("xkd.evaluation.run_id")
    if not run_id:
        return None
    with tempfile.TemporaryDirectory(prefix="xkd-outcomes-") as folder:
        try:
            return Outcomes.read(Path(client.download_artifacts(run_id, OUTCOMES_FILE, folder)))
        except (MlflowException, OSError, ValueError):
            return None
