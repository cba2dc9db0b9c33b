"""The Ray Data graph of ingest, embed and evaluate, which runs units on a pool of workers.

Ray Data schedules, limits and retries tasks of one or more units. Each worker writes its own shards
(`shards`). A row costs the driver some milliseconds, so workers send counts and not each outcome.
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.data

from pipelines.dataset.shards import shard_names
from pipelines.errors import JobFailed, UserError
from pipelines.files import replacing
from pipelines.ingest.unit_runner import Counts, UnitRunner
from pipelines.nodes import working_nodes
from pipelines.quantities import counted
from pipelines.storage import AnyPath

logger = logging.getLogger(__name__)

MAX_UNIT_RETRIES = 3
"""Retries of a task after its worker dies. Worker restarts are unlimited, because preemptible
machines lose workers for reasons unrelated to the unit."""
MAX_FRUITLESS_RUNS = 2
"""Consecutive graph failures allowed without a complete unit. The loss of a node can end a graph
of Ray Data, and a new graph then runs the remaining units."""
MAX_UNITS_PER_TASK = 8
TASKS_PER_WORKER = 4
"""Least number of tasks that are left for each worker when a task gets more than one unit."""
MAX_REPORTS_PER_SECOND = 50
"""Bounds the rows that all workers together send while their tasks run."""
UNITS_FILE = "units.jsonl"


@dataclass(frozen=True, slots=True)
class _StoredUnit:
    """Name of a unit and its bytes in the file of units."""

    name: str
    begin: int
    end: int


def run_units(
    units: Iterable[Mapping[str, Any]],
    worker: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    num_workers: int | None,
    output: AnyPath,
    rows_folder: str,
    scratch: AnyPath,
    num_gpus: float = 0,
) -> Iterator[Counts]:
    """Yields what is done so far, about once a second and worker.

    Args:
        units: Rows for the worker, which JSON can hold. `name` is the name of the shard.
        worker: A class whose instances turn a unit into rows, each a `UnitOutcome` as a dict.
        arguments: Arguments of its constructor.
        num_workers: Number of workers; None means one per CPU, or per GPU if they need one.
        output: Folder of the output.
        rows_folder: Subfolder with the shards of complete units.
        scratch: Folder of this run, which all workers reach, for the file of units.
        num_gpus: GPUs of each worker.

    Raises:
        UserError: If the output cannot be written.
        JobFailed: If workers cannot start, or a unit repeatedly crashes its worker.
    """
    file = scratch / UNITS_FILE
    left = _write_units(units, file)
    of_unit: dict[str, Counts] = {}
    total = Counts()
    num_fruitless = 0
    while left:
        nodes = {node["NodeID"] for node in working_nodes()}
        losses: list[Exception] = []
        try:
            for name, counts, failed in _reports(
                left, file, worker, arguments, num_workers, num_gpus, losses
            ):
                if failed:
                    raise UserError(f"output ({output}) {failed}")
                # A retried unit counts its first sources again.
                before = of_unit.get(name, Counts())
                if counts.sources > before.sources:
                    of_unit[name] = counts
                    total += counts - before
                    yield total
        except (ray.exceptions.RayError, _WorkerError) as error:
            losses.append(error)
        num_before = len(left)
        left = _without_written(left, output / rows_folder)
        if not (left or losses):
            return
        losses = losses or [_LostError("Ray lost tasks without a reason")]
        is_fruitless = len(left) == num_before and not _is_one_lost(nodes)
        num_fruitless = num_fruitless + 1 if is_fruitless else 0
        units_left = counted(len(left), "unit")
        if _is_our_bug(losses[-1]) or (left and num_fruitless >= MAX_FRUITLESS_RUNS):
            raise _failure(losses[-1], output, units_left) from losses[-1]
        logger.warning("continuing with %s", units_left)


def _without_written(units: Sequence[_StoredUnit], folder: AnyPath) -> list[_StoredUnit]:
    there = set(shard_names(folder))
    # A unit that always kills its worker must not keep others from their turn.
    return [unit for unit in reversed(units) if f"{unit.name}.parquet" not in there]


def _is_one_lost(nodes: Set[str]) -> bool:
    """Whether a node has gone: a unit that takes longer than machines stay is not to blame."""
    return bool(nodes - {node["NodeID"] for node in working_nodes()})


class _WorkerError(Exception):
    """An exception that a worker raised, as text."""


class _LostError(Exception):
    """Units are missing although Ray reported nothing."""


def _is_our_bug(error: Exception) -> bool:
    return isinstance(error, ray.exceptions.RayTaskError | _WorkerError)


def _write_units(units: Iterable[Mapping[str, Any]], file: AnyPath) -> list[_StoredUnit]:
    """Writes one line for each unit, so that units take no memory of the driver or of Ray."""
    stored = []
    begin = 0
    with replacing(file) as temporary, temporary.open("wb") as lines:
        for unit in units:
            end = begin + lines.write(json.dumps(unit).encode() + b"\n")
            stored.append(_StoredUnit(unit["name"], begin, end))
            begin = end
    return stored


def _tasks(units: Sequence[_StoredUnit], num_workers: int) -> Iterator[dict[str, int]]:
    """Yields the bytes of each task's units. Adjacent bytes make one range.

    Tasks shrink towards the end, so that workers finish at nearly the same time. For 2 workers, a
    task gets 8 units while 64 are left, 4 while 32 are left, and one unit from 15 on.
    """
    first = 0
    while first < len(units):
        fair = (len(units) - first) // (TASKS_PER_WORKER * num_workers)
        last = first + min(max(fair, 1), MAX_UNITS_PER_TASK) - 1
        # After a failed graph, the units that are left need not be adjacent.
        stop = first + 1
        while stop <= last and units[stop].begin == units[stop - 1].end:
            stop += 1
        yield {"begin": units[first].begin, "end": units[stop - 1].end}
        first = stop


def _failure(error: Exception, output: AnyPath, units_left: str) -> JobFailed:
    return JobFailed(
        f"the workers that write {output} failed with {units_left} left: {_cause(error)}. "
        "What is complete stays, and the same command continues from there"
    )


def _cause(error: Exception) -> str:
    if isinstance(error, ray.exceptions.RayActorError) and not error.actor_init_failed:
        return "a worker process died; if memory is short, lower num_workers"
    return str(error).strip().splitlines()[-1][:300].rstrip(".")


def _reports(
    units: Sequence[_StoredUnit],
    file: AnyPath,
    worker: Callable[..., Any],
    arguments: tuple[Any, ...],
    num_workers: int | None,
    num_gpus: float,
    losses: list[Exception],
) -> Iterator[tuple[str, Counts, str]]:
    """Runs the graph. Yields the name of a unit, its counts so far, and why it failed.

    Tasks that are lost for good, for example with their node, are appended to `losses`.
    """
    resources = ray.cluster_resources()
    there = int(resources.get("GPU", 1) / num_gpus if num_gpus else resources.get("CPU", 1))
    limit = min(num_workers or len(units), len(units))
    num_actors = max(1, min(there, limit))
    tasks = list(_tasks(units, num_actors))
    seconds = max(1.0, num_actors / MAX_REPORTS_PER_SECOND)
    with warnings.catch_warnings():
        # Ray warns about `ray_remote_args` but offers no other way to set `max_restarts`.
        warnings.filterwarnings("ignore", message=".*ray_remote_args")
        # 1:N and CPU-bound. Decoding uses one core. An actor starts its decoder or model once.
        # An actor takes one task at a time, so that no task waits behind a long one while
        # another actor is idle. The pool runs with the actors that have started, so a busy
        # cluster slows the job but does not block it, and it grows when nodes join.
        reports = ray.data.from_items(tasks, override_num_blocks=len(tasks)).flat_map(
            UnitRunner,
            fn_constructor_args=(worker, arguments, file, seconds),
            compute=ray.data.ActorPoolStrategy(
                min_size=num_actors, max_size=limit, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=1,
            num_gpus=num_gpus or None,
            max_restarts=-1,
            max_task_retries=MAX_UNIT_RETRIES,
        )
    # A row leaves its worker immediately.
    reports.context.target_max_block_size = 1
    reports.context.enable_progress_bars = False
    # A lost task must not end the others.
    reports.context.max_errored_blocks = -1
    with _told_in_one_line(losses):
        for row in reports.iter_rows():
            report = json.loads(row["report"])
            if isinstance(report, str):
                raise _WorkerError(report)
            for name, failed, *counts in report:
                yield name, Counts(*counts), failed


@contextmanager
def _told_in_one_line(losses: list[Exception]) -> Iterator[None]:
    """Collects the lost tasks that Ray Data logs, each with a traceback of 25 lines."""

    def collect(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, ray.exceptions.RayError):
            return True
        losses.append(error)
        logger.warning("a task was lost (%s); its units come again", _cause(error))
        return False

    ray_log = logging.getLogger("ray.data._internal.execution.streaming_executor_state")
    ray_log.addFilter(collect)
    try:
        yield
    finally:
        ray_log.removeFilter(collect)
