"""`python -m ray_jobs.promote CONFIG.yaml`: the encoders of a checkpoint enter the registry."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.config.promote import PromoteConfig
from pipelines.errors import UserError
from pipelines.models.checkpoints import find_checkpoint
from pipelines.registry.promote import Registered, promote
from pipelines.tracking.tracker import RunRef, open_run, tracked
from ray_jobs.cli.checks import messages, surroundings
from ray_jobs.cli.console import StageProgress
from ray_jobs.cli.main import Job, Plan, run_job


def plan(config: PromoteConfig) -> Plan:
    """What promotion reads and writes."""
    names = tuple(f"models:/{config.model_prefix}-{m}@{config.alias}" for m in ("video", "audio"))
    mistakes = messages(lambda: find_checkpoint(config.checkpoint), lambda: check_scores(config))
    return Plan(
        reads=tuple(place for place in (config.checkpoint, config.scores) if place),
        writes=names,
        mistakes=(*mistakes, *surroundings(config)),
    )


def check_scores(config: PromoteConfig) -> None:
    """Makes sure that the scores are there and belong to the checkpoint.

    Raises:
        UserError: if not.
    """
    if config.scores is None:
        return
    try:
        scores = json.loads(Path(config.scores).read_text())
        measured = Path(scores["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"scores ({config.scores}) must be a scores.json of evaluate") from None
    checkpoint = find_checkpoint(config.checkpoint)
    if measured.resolve() != checkpoint.resolve():
        raise UserError(
            f"scores ({config.scores}) are those of {measured}, not of checkpoint ({checkpoint})"
        )


def promote_stage(config: PromoteConfig, parent: RunRef | None = None) -> Sequence[Registered]:
    """Registers with progress."""
    progress = StageProgress("register", "models")
    scores = json.loads(Path(config.scores).read_text()) if config.scores else None
    with tracked(open_run(config, "promote", config.name, parent=parent)) as run:
        registered = promote(find_checkpoint(config.checkpoint), scores, config, run)
    progress.finish(", ".join(f"{model.name} version {model.version}" for model in registered))
    return registered


def in_words(registered: Sequence[Registered]) -> str:
    """One line for each version: what it is, and whether it has the alias."""
    return "\n".join(
        f"  {model.name} version {model.version}: {model.reason}" for model in registered
    )


def work(config: PromoteConfig) -> None:
    """Registers and says what has the alias."""
    print(in_words(promote_stage(config)))


JOB = Job(
    name="promote",
    about="The encoders of a checkpoint enter the registry; better ones get the alias.",
    schema=PromoteConfig,
    plan=plan,
    work=work,
)

if __name__ == "__main__":
    sys.exit(run_job(JOB))
