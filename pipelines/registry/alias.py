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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.config.promote import PromoteSettings
from pipelines.evaluation.intervals import Figure
from pipelines.evaluation.outcomes import OUTCOMES_FILE, Outcomes, paired, paired_retrieval
from pipelines.evaluation.scores import MEASURES, SUBJECTS
from pipelines.registry.encoder_scores import EncoderScores
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
    if settings.compared_on != "own":
        return _joined_rule(client, present, candidate)
    shown = f"its {measure} score {new:.4f} minus {float(old):.4f} of {holder}"
    return _paired_rule(client, present, candidate, shown)


def _paired_rule(
    client: MlflowClient, present: ModelVersion, candidate: Candidate, shown: str
) -> tuple[bool, str]:
    settings, holder = candidate.settings, f"version {present.version}"
    change = _paired_change(client, present, candidate)
    if change is None or change.low is None or change.high is None:
        return False, (
            f"{holder}, which has it, has no results of each clip to compare with: "
            "evaluate and promote its checkpoint again"
        )
    if settings.metric == "retrieval":
        shown = f"its mean recall@5 of both directions minus that of {holder}"
    moves, why = _judged(change, settings.rule)
    return moves, f"{shown} is {change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}], {why}"


def _joined_rule(
    client: MlflowClient, present: ModelVersion, candidate: Candidate
) -> tuple[bool, str]:
    """Decides by a score of both encoders together, which only the results of each clip have."""
    settings, holder = candidate.settings, f"version {present.version}"
    what = f"{MEASURES[settings.metric]} score of {SUBJECTS[settings.compared_on]}"
    change = _paired_change(client, present, candidate)
    if change is None or change.low is None or change.high is None:
        return False, (
            f"there are no results of each clip for its {what} and that of {holder}, which has it: "
            "evaluate both with fusion, and promote again"
        )
    moves, why = _judged(change, settings.rule)
    return moves, (
        f"its {what} minus that of {holder} is {change.value:+.4f} "
        f"[{change.low:+.4f}, {change.high:+.4f}], {why}"
    )


def move_alias(
    client: MlflowClient, name: str, alias: str, number: str, why: str, *, is_way_back: bool = False
) -> str | None:
    """Gives an alias to a version, and records on its tags who had it before and why it moved.

    A way back records no predecessor: the next one leads further back, not forth again.

    Returns:
        The version that had it; None if it is new.
    """
    before = client.get_registered_model(name).aliases.get(alias)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    # The tags come first: a move that is cut off leaves a tag, never an unexplained alias.
    if before is not None and str(before) != number:
        if not is_way_back:
            client.set_model_version_tag(name, number, f"xkd.alias.{alias}.before", str(before))
        client.set_model_version_tag(name, str(before), f"xkd.alias.{alias}.lost", f"{now} {why}")
    client.set_model_version_tag(name, number, f"xkd.alias.{alias}.got", f"{now} {why}")
    client.set_registered_model_alias(name, alias, number)
    return None if before is None else str(before)


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
    of = candidate.settings.compared_on
    subject = present.tags["xkd.modality"] if of == "own" else of
    path = f"{subject}/trained/{candidate.settings.metric}"
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
