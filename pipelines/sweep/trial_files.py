"""The trials of a sweep on disk: their values, their scores so far, and how they ended.

A sweep continues from these files, not from Tune's state. A trial is written before it starts, each
rung before its checkpoint, and the end as soon as it is known, so that no trial is lost or run
twice, whenever the driver is killed.

    trials/trial-007/trial.json    number and values, written by the searcher
    trials/trial-007/rungs.json    scores at each rung, written by rank 0 of the training
    trials/trial-007/ended.json    status and reason, written by the driver of the sweep
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.evaluation.rungs import Rung, read_rungs
from pipelines.files import write_json
from pipelines.storage import AnyPath, sorted_files

Status = Literal["running", "completed", "stopped", "collapsed", "failed"]
TRIALS_FOLDER = "trials"
_TRIAL_FILE = "trial.json"
ENDED_FILE = "ended.json"


@dataclass(frozen=True)
class Trial:
    """A trial with its scores so far."""

    number: int
    values: Mapping[str, Any]
    """By entry of the space."""
    rungs: tuple[Rung, ...] = ()
    status: Status = "running"
    reason: str = ""
    """Why it did not complete, or a remark if it did."""

    @property
    def name(self) -> str:
        """The name of its folder and of its MLflow run."""
        return _trial_name(self.number)


def _trial_name(number: int) -> str:
    """Returns the name of a trial; names sort like numbers.

    >>> _trial_name(7)
    'trial-007'
    """
    return f"trial-{number:03d}"


def trial_folder(sweep: AnyPath, number: int) -> AnyPath:
    """Returns the folder with the checkpoints and files of a trial."""
    return sweep / TRIALS_FOLDER / _trial_name(number)


def add_trial(sweep: AnyPath, number: int, values: Mapping[str, Any]) -> None:
    """Writes a trial before it starts."""
    folder = trial_folder(sweep, number)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _TRIAL_FILE, {"number": number, "values": dict(values)})


def end_trial(sweep: AnyPath, number: int, status: Status, reason: str) -> None:
    """Writes how a trial ended."""
    values = {"status": status, "reason": reason}
    write_json(trial_folder(sweep, number) / ENDED_FILE, values)


def reopen_trial(sweep: AnyPath, number: int) -> None:
    """Removes the end of a trial, which then continues like an interrupted one."""
    (trial_folder(sweep, number) / ENDED_FILE).unlink()


def read_trial(sweep: AnyPath, number: int) -> Trial:
    """Reads a trial."""
    folder = trial_folder(sweep, number)
    ended = folder / ENDED_FILE
    end = json.loads(ended.read_text()) if ended.exists() else {}
    values = json.loads((folder / _TRIAL_FILE).read_text())["values"]
    return Trial(number, values, read_rungs(folder), **end)


def read_trials(sweep: AnyPath) -> list[Trial]:
    """Reads all trials of a sweep, ordered by number."""
    files = sorted_files(sweep / TRIALS_FOLDER, f"trial-*/{_TRIAL_FILE}")
    numbers = sorted(int(json.loads(file.read_text())["number"]) for file in files)
    return [read_trial(sweep, number) for number in numbers]
