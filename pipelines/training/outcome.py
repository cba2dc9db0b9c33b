"""How a training ended, as its workers say it, and what the driver makes of that."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.config.pretrain import PretrainConfig
from pipelines.errors import JobFailed, Stopped, UserError
from pipelines.models.checkpoints import find_checkpoint
from pipelines.training.stopping import Stop


@dataclass(frozen=True)
class TrainOutcome:
    """What rank 0 returns; it goes to the driver as a dictionary."""

    first_step: int
    """The step at which these workers began."""
    next_step: int
    """The step after the last one done."""
    total_steps: int
    clips_per_second: float
    stop: int
    """A `Stop`: why the training ended before its last step, if it did."""
    not_finite: tuple[int, Sequence[str]] | None
    """The first step with a loss or gradient that is not finite, and the names of these metrics."""
    has_failed: bool
    """Whether a checkpoint could not be written."""
    failure: str
    """Why not."""

    @property
    def is_interrupted_in_order(self) -> bool:
        """Whether all steps done are saved."""
        return not self.not_finite and not self.has_failed

    def summary_text(self) -> str:
        """How far the training has come."""
        return f"{self.next_step} of {self.total_steps} steps are done and saved"


def check_outcome(outcome: TrainOutcome, config: PretrainConfig, folder: Path) -> None:
    """Accepts a training that reached its last step.

    Raises:
        JobFailed: if a loss is not finite or a checkpoint could not be written.
        Stopped: if the training stopped early, with a checkpoint.
    """
    if outcome.not_finite:
        step, terms = outcome.not_finite
        raise JobFailed(
            f"step {step} has a loss that is not finite ({', '.join(terms)}); "
            f"{_last_checkpoint(folder)}. "
            "A lower optimizer.learning_rate or precision=float32 is the usual remedy"
        )
    if outcome.has_failed:
        raise JobFailed(
            f"a checkpoint could not be written to {folder}: {outcome.failure}; "
            f"{_last_checkpoint(folder)}. With room to write, the same command goes on from there"
        )
    if outcome.next_step < outcome.total_steps:
        reason = "a worker got SIGTERM"
        if outcome.stop == Stop.TIME_IS_UP:
            reason = f"max_seconds ({config.max_seconds:g}) are over"
        raise Stopped(f"{reason}: {outcome.summary_text()}. The same command goes on from there")


def _last_checkpoint(folder: Path) -> str:
    try:
        return f"the last good checkpoint is {find_checkpoint(str(folder))}"
    except UserError:
        return "there is no checkpoint yet"
