"""Runs units in a worker of Ray Data, and sums up what became of their sources."""

import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.meters import count
from pipelines.storage import AnyPath


@dataclass(frozen=True)
class UnitOutcome:
    """Result of one source of a unit. Workers yield it as a dict."""

    unit: str = ""
    clips: int = 0
    """Number of rows of the source."""
    seconds: float = 0.0
    """Total duration of the rows, in seconds."""
    reason: str = ""
    """Reason for the reject, or empty."""
    failed: str = ""
    """Reason why the unit cannot be written, or empty."""


@dataclass(frozen=True)
class Counts:
    """Number of finished sources, their rows and their rejects."""

    sources: int = 0
    clips: int = 0
    rejected: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.sources + other.sources, self.clips + other.clips, self.rejected + other.rejected
        )

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(
            self.sources - other.sources, self.clips - other.clips, self.rejected - other.rejected
        )


class UnitRunner:
    """The Ray actor around a worker: reads units from the file and sums up their outcomes."""

    def __init__(
        self,
        worker: Callable[..., Any],
        arguments: tuple[Any, ...],
        file: AnyPath,
        report_seconds: float,
    ) -> None:
        self._worker = worker(*arguments)
        self._file = file
        self._job = worker.__name__
        self._report_seconds = report_seconds

    def __call__(self, task: dict[str, int]) -> Iterator[dict[str, str]]:
        """Runs the units of a task; each row reports the units that have changed.

        An exception is reported as well: raised, it would count as a lost task.
        """
        try:
            yield from self._run(task)
        except Exception as error:  # whatever it is must end the job
            traceback.print_exc()
            yield {"report": json.dumps(f"{type(error).__name__}: {error}")}

    def _run(self, task: dict[str, int]) -> Iterator[dict[str, str]]:
        reported_at = time.monotonic()
        changed: dict[str, tuple[Counts, str]] = {}
        for unit in self._units(task):
            counts = Counts()
            for outcome in self._worker(unit):
                failed = outcome["failed"]
                _count(outcome, self._job)
                counts += Counts(not failed, outcome["clips"], bool(outcome["reason"]))
                changed[unit["name"]] = counts, failed
                if failed or time.monotonic() - reported_at >= self._report_seconds:
                    yield _report(changed)
                    changed.clear()
                    reported_at = time.monotonic()
        if changed:
            yield _report(changed)

    def _units(self, task: dict[str, int]) -> list[dict[str, Any]]:
        with self._file.open("rb") as lines:
            lines.seek(task["begin"])
            return [
                json.loads(line) for line in lines.read(task["end"] - task["begin"]).splitlines()
            ]


def _count(outcome: Mapping[str, Any], job: str) -> None:
    if not outcome["failed"]:
        count("xkd_sources", 1, job)
        count("xkd_clips", outcome["clips"], job)
    if outcome["reason"]:
        count("xkd_rejects", 1, outcome["reason"])


def _report(changed: Mapping[str, tuple[Counts, str]]) -> dict[str, str]:
    rows = [[name, failed, *asdict(counts).values()] for name, (counts, failed) in changed.items()]
    return {"report": json.dumps(rows)}
