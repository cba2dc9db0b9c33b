"""The trials of a sweep on disk: what each one is, its scores so far, and how it ended.

This, not Tune's own state, is what a sweep goes on from: a trial is written before it starts, each
rung before its checkpoint, the end when it is known. So a trial is neither lost nor run twice,
whenever the driver is killed.

    trials/trial-007/trial.json    number and values, by whoever suggested them
    trials/trial-007/rungs.json    scores at each rung, by the training's rank 0
    trials/trial-007/ended.json    status and reason, by the sweep's driver
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.evaluation.rungs import Rung, read_rungs
from pipelines.files import write_json

Status = Literal["running", "completed", "stopped", "collapsed", "failed"]
TRIALS_FOLDER = "trials"
_TRIAL_FILE = "trial.json"
ENDED_FILE = "ended.json"


@dataclass(frozen=True)
class Trial:
    """A trial as far as it has come."""

    number: int
    values: Mapping[str, Any]
    """By the entries of the space."""
    rungs: tuple[Rung, ...] = ()
    status: Status = "running"
    reason: str = ""
    """Why it did not complete, or what its user must know if it did."""

    @property
    def name(self) -> str:
        """Its name on disk and in MLflow."""
        return _trial_name(self.number)


def _trial_name(number: int) -> str:
    """A trial's name; names sort as numbers do.

    >>> _trial_name(7)
    'trial-007'
    """
    return f"trial-{number:03d}"


def trial_folder(sweep: Path, number: int) -> Path:
    """Where a trial keeps its checkpoints and these files."""
    return sweep / TRIALS_FOLDER / _trial_name(number)


def add_trial(sweep: Path, number: int, values: Mapping[str, Any]) -> None:
    """Writes down a trial before it starts."""
    folder = trial_folder(sweep, number)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _TRIAL_FILE, {"number": number, "values": dict(values)})


def end_trial(sweep: Path, number: int, status: Status, reason: str) -> None:
    """Writes down how a trial ended."""
    values = {"status": status, "reason": reason}
    write_json(trial_folder(sweep, number) / ENDED_FILE, values)


def reopen_trial(sweep: Path, number: int) -> None:
    """Takes back the end of a trial, which then goes on as one that was interrupted."""
    (trial_folder(sweep, number) / ENDED_FILE).unlink()


def read_trial(sweep: Path, number: int) -> Trial:
    """One trial."""
    folder = trial_folder(sweep, number)
    ended = folder / ENDED_FILE
    end = json.loads(ended.read_text()) if ended.exists() else {}
    values = json.loads((folder / _TRIAL_FILE).read_text())["values"]
    return Trial(number, values, read_rungs(folder), **end)


def read_trials(sweep: Path) -> list[Trial]:
    """All trials of a sweep by their numbers."""
    files = sorted((sweep / TRIALS_FOLDER).glob(f"trial-*/{_TRIAL_FILE}"))
    numbers = sorted(int(json.loads(file.read_text())["number"]) for file in files)
    return [read_trial(sweep, number) for number in numbers]
