"""The trials of a sweep on disk: what each one is, its scores so far, and how it ended.

This, not Tune's own state, is what a sweep goes on from: a trial is written before it starts, each
rung before its checkpoint, the end when it is known. So a trial is neither lost nor run twice,
whenever the driver is killed.

    trials/trial-007/trial.json    number and values, by whoever suggested them
    trials/trial-007/rungs.json    scores at each rung, by the training's rank 0
    trials/trial-007/ended.json    status and reason, by the sweep's driver
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.shards import write_json

Status = Literal["running", "completed", "stopped", "collapsed", "failed"]
TRIALS_FOLDER = "trials"
TRIAL_FILE = "trial.json"
RUNGS_FILE = "rungs.json"
ENDED_FILE = "ended.json"


@dataclass(frozen=True)
class Rung:
    """What a trial scored at one point of its training."""

    rung: int
    """0 is before the first step."""
    step: int
    epoch: float
    scores: Mapping[str, float]
    """Held-out accuracies: `video/knn`, `video/linear`, `audio/knn`, `audio/linear`."""
    num_test: int = 0
    """Held-out clips behind a score; the fewer of both modalities."""
    collapse: Sequence[str] = ()
    """Signs of collapse, in words."""


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
        return trial_name(self.number)


def trial_name(number: int) -> str:
    """A trial's name; names sort as numbers do.

    >>> trial_name(7)
    'trial-007'
    """
    return f"trial-{number:03d}"


def trial_folder(sweep: Path, number: int) -> Path:
    """Where a trial keeps its checkpoints and these files."""
    return sweep / TRIALS_FOLDER / trial_name(number)


def add_trial(sweep: Path, number: int, values: Mapping[str, Any]) -> None:
    """Writes down a trial before it starts."""
    folder = trial_folder(sweep, number)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / TRIAL_FILE, {"number": number, "values": dict(values)})


def add_rung(folder: Path, rung: Rung) -> None:
    """Writes down scores; a rung that is measured again replaces itself and all after it."""
    kept = [asdict(other) for other in read_rungs(folder) if other.rung < rung.rung]
    write_json(folder / RUNGS_FILE, [*kept, asdict(rung)])


def read_rungs(folder: Path) -> tuple[Rung, ...]:
    """The scores of a trial so far."""
    file = folder / RUNGS_FILE
    return tuple(Rung(**rung) for rung in json.loads(file.read_text())) if file.exists() else ()


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
    values = json.loads((folder / TRIAL_FILE).read_text())["values"]
    return Trial(number, values, read_rungs(folder), **end)


def read_trials(sweep: Path) -> list[Trial]:
    """All trials of a sweep by their numbers."""
    files = sorted((sweep / TRIALS_FOLDER).glob(f"trial-*/{TRIAL_FILE}"))
    numbers = sorted(int(json.loads(file.read_text())["number"]) for file in files)
    return [read_trial(sweep, number) for number in numbers]
