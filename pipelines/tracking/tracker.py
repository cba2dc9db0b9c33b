"""Logs metrics to an MLflow run without holding up the training loop.

`log` appends a record to a queue; a thread sends the oldest record and drops it only after MLflow
has taken it. So a record is in MLflow, in the queue, or in the file, and possibly in two of them,
but never in none:

    log(), tag()         thread                          MLflow
        |                  |
        v   [4][3][2][1] --+-- send 1 --> accepted ----> 1 leaves the queue
        queue              |
                           +-- send 1 --> away --------> 1 stays; pause, then send 1 again

    close()   waits until the queue is empty or its patience is over; then 1 2 3 4 go to
              unsent_metrics.jsonl, which the next tracker reads as its first record [0]
              and deletes only when 0 has been accepted
    unsent()  a copy of the queue, which every checkpoint keeps: a worker that is killed
              writes no file, and the next one starts from the copy

Sending a record twice does no harm: MLflow stores a metric once per (key, timestamp, step, value).
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.files import replacing
from pipelines.redaction import one_line
from pipelines.storage import AnyPath
from pipelines.tracking.runs import RunRef
from pipelines.tracking.server import RETRY_SECONDS

# isort: split
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

UNSENT_FILE = "unsent_metrics.jsonl"
"""The file in a run's folder with the metrics that its tracker could not send, as JSON lines."""
_MAX_BATCH = 1000
"""Metrics that MLflow accepts in one request."""
_MAX_TAG_CHARACTERS = 5000


class Tracker:
    """Logs metrics and tags to a run from its own thread; `log` and `tag` return at once.

    Args:
        run: The run to log to.
        unsent_file: The file for what is left when the tracker closes. What an earlier tracker left
            there is sent first.
        system_metrics: Whether to log the load of the machine as well.
        resumed: Whether the run already has system metrics.
        unsent: The records of an earlier tracker's `unsent`, which are sent first too.
    """

    def __init__(
        self,
        run: RunRef,
        unsent_file: AnyPath,
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
        # The file stays until its content is sent: this process may be killed before that.
        self._earlier = _record_of([*unsent, *_read_lines(unsent_file)])
        if self._earlier.metrics or self._earlier.tags:
            self._waiting.append(self._earlier)
        self._thread = threading.Thread(target=self._send_all, daemon=True, name="tracker")
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Queues the metrics of one step by name."""
        now = int(time.time() * 1000)
        self._add(_Record([Metric(name, value, now, step) for name, value in metrics.items()], []))

    def tag(self, name: str, value: str) -> None:
        """Queues a tag of the run; longer values are cut at 5,000 characters."""
        self._add(_Record([], [RunTag(name, value[:_MAX_TAG_CHARACTERS])]))

    def unsent(self) -> list[dict[str, Any]]:
        """Returns the metrics and tags that MLflow may not have yet."""
        with self._change:
            return [values for record in self._waiting for values in record.to_dicts()]

    def close(self, patience_seconds: float = 60.0) -> None:
        """Waits until the queue is sent, at most `patience_seconds`; writes what is left."""
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
                self._watch_system()  # MLflow's monitor stops for good when the server is away
        if self._system is not None:
            self._system.finish()

    def _pause(self) -> None:
        """Waits between two attempts; `close` ends the current pause early, but no later one."""
        with self._change:
            if not self._is_closing:
                self._change.wait_for(lambda: self._is_closing, timeout=RETRY_SECONDS)
                return
        time.sleep(min(RETRY_SECONDS, max(self._give_up_at - time.monotonic(), 0.0)))

    def _next(self) -> "_Record | None":
        """Waits for the oldest record, which stays in the queue; None after the last one."""
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._is_closing)
            return self._waiting[0] if self._waiting else None

    def _sent(self, client: MlflowClient, record: "_Record") -> bool:
        try:
            for first in range(0, max(len(record.metrics), 1), _MAX_BATCH):
                metrics = record.metrics[first : first + _MAX_BATCH]
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
        with replacing(self._unsent_file) as temporary:  # the queue still has the old content
            temporary.write_text(lines)
        logger.warning("wrote the metrics that MLflow did not take to %s", self._unsent_file)


@dataclass(frozen=True)
class _Record:
    """Metrics and tags that are sent together."""

    metrics: list[Metric]
    tags: list[RunTag]

    def to_dicts(self) -> Iterator[dict[str, Any]]:
        """Yields each metric and tag as JSON."""
        for metric in self.metrics:
            yield dict(metric)
        for tag in self.tags:
            yield {"tag": tag.key, "value": tag.value}


def _record_of(entries: Iterable[Mapping[str, Any]]) -> _Record:
    """Makes a record of what `to_dicts` yielded."""
    record = _Record([], [])
    for values in entries:
        if "tag" in values:
            record.tags.append(RunTag(values["tag"], values["value"]))
        else:
            names = ("key", "value", "timestamp", "step")
            record.metrics.append(Metric(*(values[name] for name in names)))
    return record


def _read_lines(file: AnyPath) -> list[dict[str, Any]]:
    """Reads an unsent file; skips a line that is cut off, as a power cut leaves it."""
    if not file.exists():
        return []
    entries = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            logger.warning("skipped a line of %s that is cut off: %s", file, line[:80])
    return entries
