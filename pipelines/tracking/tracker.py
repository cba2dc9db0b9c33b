"""MLflow: one run per job, metrics that never hold up training, and lineage.

A job opens its run in the driver (`open_run`) and hands the run's id on; whoever measures logs
through a `Tracker`, whose thread sends, and sends again while the server is away. What could not
be sent at the end is written to a file, so nothing that was measured is lost.
"""

import json
import logging
import os
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pipelines.config.base import JobConfig, TrackingConfig
from pipelines.config.dotted import flat
from pipelines.errors import JobFailed, Stopped, UserError
from pipelines.files import temporary_name
from pipelines.paths import home
from pipelines.redaction import one_line, redacted

# Before mlflow is imported: no telemetry, and a server that is away fails in seconds.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)
T = TypeVar("T")


def _without_password(record: logging.LogRecord) -> bool:
    record.msg, record.args = redacted(record.getMessage()), ()
    return True


for handler in logging.getLogger("mlflow").handlers:
    handler.addFilter(_without_password)  # its monitor warns of a server with the whole URI

SQLITE = "sqlite:///"
SQLITE_HEADER = b"SQLite format 3\x00"
UNSENT_FILE = "unsent_metrics.jsonl"
"""In a run's folder, what its tracker could not send."""
RETRY_SECONDS = 2.0
MAX_RETRY_SECONDS = 30.0
OPEN_PATIENCE_SECONDS = 30.0
"""How long a job that begins waits for MLflow, which answered a moment ago (`check_tracking`)."""
WORK_PATIENCE_SECONDS = 300.0
"""How long work that is under way waits, as a trial of a sweep that begins."""
MAX_BATCH = 1000
"""Metrics that MLflow takes at once."""
MAX_TAG_CHARACTERS = 5000
WARNING_TAG = "xkd.warning."
"""Start of the tags under which a run keeps what its user must know."""
CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class RunRef:
    """A run of MLflow: all that a worker needs to log to it."""

    uri: str
    experiment_id: str
    run_id: str

    def client(self) -> MlflowClient:
        """A client for the run's server."""
        return MlflowClient(self.uri)


def tracking_uri(config: TrackingConfig) -> str:
    """Where MLflow is: the setting, else MLFLOW_TRACKING_URI, else an sqlite file at home."""
    given = config.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return given or f"{SQLITE}{home('mlflow.db') / 'mlflow.db'}"


def kept_settings(config: JobConfig) -> dict[str, Any]:
    """All settings as JSON for files that others may read: without the server's password."""
    values = config.model_dump(mode="json")
    if values["tracking"]["uri"]:
        values["tracking"]["uri"] = redacted(values["tracking"]["uri"])
    return values


def check_tracking(config: TrackingConfig) -> None:
    """Makes sure that MLflow can be reached, before any work starts.

    Raises:
        UserError: if the address is of a kind that is not supported or nothing answers there.
    """
    try:
        uri = tracking_uri(config)
    except ValueError as error:
        raise UserError(f"tracking.uri {error}") from error
    kinds = f"tracking.uri ({redacted(uri)}) must be http(s)://HOST:PORT or sqlite:////FILE"
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{kinds}: {error}") from None  # its traceback would show a password
    if parts.scheme == "sqlite":
        _check_sqlite(Path(uri.removeprefix(SQLITE)))
    elif parts.scheme in ("http", "https") and host:
        _check_server(uri, host, port or (443 if parts.scheme == "https" else 80))
    else:
        raise UserError(kinds)


def _check_sqlite(file: Path) -> None:
    what = f"tracking.uri (sqlite:///{file})"
    if not file.is_absolute():
        raise UserError(f"{what} must name an absolute file")
    there = file
    while not os.path.exists(there):
        there = there.parent
    if not os.access(there, os.W_OK):
        raise UserError(f"{what} is not writable")
    if there == file and not (file.is_file() and _is_database(file)):
        raise UserError(f"{what} must name a database of SQLite or a file that is not there yet")
    if there != file and not there.is_dir():
        raise UserError(f"{what} must lie in a folder, but {there} is a file")


def _is_database(file: Path) -> bool:
    """Whether it begins as one, or is empty as one may be at first."""
    with file.open("rb") as content:
        return content.read(len(SQLITE_HEADER)) in (b"", SQLITE_HEADER)


def _check_server(uri: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
        MlflowClient(uri).search_experiments(max_results=1)
    except (OSError, MlflowException) as error:
        raise UserError(
            f"tracking.uri ({redacted(uri)}) does not answer as an MLflow server: {one_line(error)}"
        ) from error


def open_run(
    config: JobConfig, job: str, name: str, *, parent: RunRef | None = None, run_id: str = ""
) -> RunRef:
    """Opens a run, or goes on in the run `run_id` if MLflow still has it.

    A part of another run goes where that one is: Ray's workers have working directories of their
    own, where a relative default would be another server.

    Raises:
        JobFailed: if MLflow refuses, or is away for longer than a while.
    """
    uri = parent.uri if parent is not None else tracking_uri(config.tracking)
    if uri.startswith(SQLITE):
        Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(uri)
    patience = WORK_PATIENCE_SECONDS if parent is not None else OPEN_PATIENCE_SECONDS
    if run_id and (experiment_id := patiently(uri, patience, lambda: _reopened(client, run_id))):
        return RunRef(uri, experiment_id, run_id)
    experiment_id = (
        parent.experiment_id
        if parent is not None
        else patiently(uri, patience, lambda: _experiment(client, config.tracking.experiment, uri))
    )
    tags = {"xkd.job": job, "xkd.code_version": code_version()}
    if parent is not None:
        tags["mlflow.parentRunId"] = parent.run_id
    run = patiently(
        uri, patience, lambda: client.create_run(experiment_id, run_name=name, tags=tags)
    )
    reference = RunRef(uri, experiment_id, run.info.run_id)
    patiently(uri, patience, lambda: _log_settings(client, reference.run_id, config))
    return reference


def patiently(uri: str, patience_seconds: float, act: Callable[[], T]) -> T:
    """Does something at MLflow, which may be tried again while it is away.

    Raises:
        JobFailed: if MLflow refuses, or is away for longer than that.
    """
    give_up_at = time.monotonic() + patience_seconds
    pause = RETRY_SECONDS
    while True:
        try:
            return act()
        except (MlflowException, OSError) as error:
            if not _is_away(error) or time.monotonic() + pause > give_up_at:
                raise JobFailed(f"MLflow ({redacted(uri)}) fails: {one_line(error)}") from error
            logger.warning("MLflow does not answer, trying again: %s", one_line(error))
        time.sleep(pause)
        pause = min(2 * pause, MAX_RETRY_SECONDS)


def _is_away(error: Exception) -> bool:
    """Whether it may go away by itself: no answer, too busy, or a mistake of the server's own."""
    status = error.get_http_status_code() if isinstance(error, MlflowException) else 500
    return status >= 500 or status == 429


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment ({name}) was deleted in MLflow: restore it or name another one"
        )
    if found is not None:
        return str(found.experiment_id)
    # Without a server the artifacts lie beside the sqlite file, wherever the job was started.
    beside = Path(uri.removeprefix(SQLITE)).parent / "mlartifacts" if uri.startswith(SQLITE) else ""
    try:
        return str(client.create_experiment(name, artifact_location=str(beside) or None))
    except MlflowException:
        created = client.get_experiment_by_name(name)  # by another job in the meantime
        if created is None:
            raise
        return str(created.experiment_id)


def _reopened(client: MlflowClient, run_id: str) -> str | None:
    """The experiment of a run that goes on, or None if MLflow has deleted it or never had it."""
    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    if info.lifecycle_stage != "active":
        return None
    client.update_run(run_id, status="RUNNING")
    return str(info.experiment_id)


def _log_settings(client: MlflowClient, run_id: str, config: JobConfig) -> None:
    values = kept_settings(config)
    client.log_dict(run_id, values, "config.json")
    parameters = [Param(key, str(value)[:500]) for key, value in flat(values).items()]
    client.log_batch(run_id, params=parameters)


def close_run(run: RunRef, status: str) -> None:
    """Ends a run as FINISHED, FAILED or KILLED; a server that is away only leaves a warning."""
    try:
        run.client().set_terminated(run.run_id, status)
    except MlflowException as error:
        logger.warning(
            "MLflow did not hear that run %s is %s: %s", run.run_id, status, one_line(error)
        )


@contextmanager
def tracked(run: RunRef) -> Iterator[RunRef]:
    """Ends the run as the block ends: FINISHED, KILLED if it was stopped, FAILED on an error."""
    try:
        yield run
    except (KeyboardInterrupt, Stopped):
        close_run(run, "KILLED")
        raise
    except BaseException:
        close_run(run, "FAILED")
        raise
    close_run(run, "FINISHED")


def code_version() -> str:
    """The commit of this checkout, else the version of the installed package."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"xkd {version('xkd')}"


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


def metric_histories(run: RunRef) -> dict[str, tuple[list[int], list[float]]]:
    """All metrics of a run as steps and values, system metrics left out.

    Of a step that was done again after a kill MLflow has both values; the later one counts.
    """
    client = run.client()
    histories = {}
    for name in client.get_run(run.run_id).data.metrics:
        if not name.startswith("system/"):
            history = client.get_metric_history(run.run_id, name)
            values = {m.step: m.value for m in sorted(history, key=lambda m: m.timestamp)}
            steps = sorted(values)
            histories[name] = (steps, [values[step] for step in steps])
    return histories


def warnings_of(run: RunRef) -> list[str]:
    """What a run's user must know, such as a collapse or a feed that is too slow."""
    tags = run.client().get_run(run.run_id).data.tags
    return [text for name, text in sorted(tags.items()) if name.startswith(WARNING_TAG)]


def log_dataset(run: RunRef, *, dataset_id: str, path: str, num_clips: int, context: str) -> None:
    """Records which clip dataset a run read.

    Raises:
        JobFailed: if MLflow refuses, or is away for longer than a while.
    """
    client = run.client()
    dataset = Dataset(
        name="clips",
        digest=dataset_id[:36],
        source_type="local",
        source=json.dumps({"uri": path}),
        profile=json.dumps({"num_clips": num_clips}),
    )
    tag = InputTag("mlflow.data.context", context)

    def log() -> None:
        client.set_tag(run.run_id, f"xkd.dataset.{context}", dataset_id)
        client.log_inputs(run.run_id, [DatasetInput(dataset, [tag])])

    patiently(run.uri, WORK_PATIENCE_SECONDS, log)
