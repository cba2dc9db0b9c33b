"""Logs metrics to an MLflow run without holding up the work that measures them.

A `Tracker` queues; its thread sends, and sends again while the server is away. What could not be
sent at the end is written to a file, so nothing that was measured is lost.
"""

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.files import temporary_name
from pipelines.redaction import one_line
from pipelines.tracking.runs import RunRef
from pipelines.tracking.server import RETRY_SECONDS

# isort: split
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

UNSENT_FILE = "unsent_metrics.jsonl"
"""In a run's folder, what its tracker could not send."""
MAX_BATCH = 1000
"""Metrics that MLflow takes at once."""
MAX_TAG_CHARACTERS = 5000


class Tracker:
    """Logs metrics to a run from a thread of its own.

    `log` only queues. While MLflow is away the queue grows and is sent when it is back; what is
    left at `close` goes to `unsent_file` as JSON lines, which the next tracker sends.

    Args:
        run: Where to.
        unsent_file: See above.
        system_metrics: Log the machine's load as well.
        resumed: Whether the run has system metrics already.
        unsent: What an earlier tracker queued and may not have sent.
    """

    def __init__(
        self,
        run: RunRef,
        unsent_file: Path,
        *,
        system_metrics: bool = False,
        resumed: bool = False,
        unsent: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self._run = run
        self._unsent_file = unsent_file
        self._system_metrics, self._resumed = system_metrics, resumed
        self._system: SystemMetricsMonitor | None = None
        self._waiting: deque[_Record] = deque()
        self._change = threading.Condition()
        self._is_closing = False
        self._give_up_at = float("inf")
        # The file stays until all of it is sent: this process may be killed before.
        self._earlier = _record_of([*unsent, *_read_lines(unsent_file)])
        if self._earlier.metrics or self._earlier.tags:
            self._waiting.append(self._earlier)
        self._thread = threading.Thread(target=self._send_all, daemon=True, name="tracker")
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Queues numbers under their names for one step."""
        now = int(time.time() * 1000)
        self._add(_Record([Metric(name, value, now, step) for name, value in metrics.items()], []))

    def tag(self, name: str, value: str) -> None:
        """Queues a tag of the run."""
        self._add(_Record([], [RunTag(name, value[:MAX_TAG_CHARACTERS])]))

    def unsent(self) -> list[dict[str, Any]]:
        """Metrics and tags that MLflow may not have yet."""
        with self._change:
            return [values for record in self._waiting for values in record.to_dicts()]

    def close(self, patience_seconds: float = 60.0) -> None:
        """Waits until everything is sent, at most `patience_seconds`."""
        with self._change:
            self._give_up_at = time.monotonic() + patience_seconds
            self._is_closing = True
            self._change.notify_all()
        self._thread.join()

    def _add(self, record: "_Record") -> None:
        with self._change:
            self._waiting.append(record)
            self._change.notify_all()

    def _send_all(self) -> None:
        client = self._run.client()
        self._watch_system()
        while (record := self._next()) is not None:
            was_away = False
            while not self._sent(client, record):
                was_away = True
                if time.monotonic() > self._give_up_at:
                    self._keep()
                    return
                self._pause()
            if record is self._earlier:
                self._unsent_file.unlink(missing_ok=True)
            with self._change:
                self._waiting.popleft()
                self._change.notify_all()
            if was_away:
                self._watch_system()  # MLflow's monitor ends for good when the server is away
        if self._system is not None:
            self._system.finish()

    def _pause(self) -> None:
        """Waits between two tries; `close` cuts short only the pause that it comes in."""
        with self._change:
            if not self._is_closing:
                self._change.wait_for(lambda: self._is_closing, timeout=RETRY_SECONDS)
                return
        time.sleep(min(RETRY_SECONDS, max(self._give_up_at - time.monotonic(), 0.0)))

    def _next(self) -> "_Record | None":
        """The next record, which stays in the queue, or None if all is sent and none will come."""
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._is_closing)
            return self._waiting[0] if self._waiting else None

    def _sent(self, client: MlflowClient, record: "_Record") -> bool:
        try:
            for first in range(0, max(len(record.metrics), 1), MAX_BATCH):
                metrics = record.metrics[first : first + MAX_BATCH]
                client.log_batch(self._run.run_id, metrics=metrics, tags=record.tags)
        except (MlflowException, OSError) as error:
            logger.warning("MLflow does not take metrics, trying again: %s", one_line(error))
            return False
        return True

    def _watch_system(self) -> None:
        if not self._system_metrics:
            return
        if self._system is not None:
            self._system.finish()
        resumed, self._resumed = self._resumed, True
        self._system = SystemMetricsMonitor(
            self._run.run_id, resume_logging=resumed, tracking_uri=self._run.uri
        )
        self._system.start()

    def _keep(self) -> None:
        self._unsent_file.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(values) + "\n" for values in self.unsent())
        # What the file had so far is still queued.
        temporary = temporary_name(self._unsent_file)
        temporary.write_text(lines)
        os.replace(temporary, self._unsent_file)
        logger.warning("kept metrics that MLflow did not take in %s", self._unsent_file)


@dataclass(frozen=True)
class _Record:
    """What is sent at once."""

    metrics: list[Metric]
    tags: list[RunTag]

    def to_dicts(self) -> Iterator[dict[str, Any]]:
        """For a file, an entry for each."""
        for metric in self.metrics:
            yield dict(metric)
        for tag in self.tags:
            yield {"tag": tag.key, "value": tag.value}


def _record_of(entries: Iterable[Mapping[str, Any]]) -> _Record:
    """The reverse of `to_dicts`."""
    record = _Record([], [])
    for values in entries:
        if "tag" in values:
            record.tags.append(RunTag(values["tag"], values["value"]))
        else:
            names = ("key", "value", "timestamp", "step")
            record.metrics.append(Metric(*(values[name] for name in names)))
    return record


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """What a tracker kept; a line that is not whole, as after a power cut, is left out."""
    if not file.exists():
        return []
    entries = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            logger.warning("left out a line of %s that is not whole: %s", file, line[:80])
    return entries
