"""The Ray Data graph of ingest and embed, which runs units on a pool of workers.

Ray Data schedules, limits and retries units. Each worker writes its own shards (`shards`).
"""

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data

from pipelines.errors import JobFailed, UserError
from pipelines.quantities import counted

logger = logging.getLogger(__name__)

MAX_UNIT_RETRIES = 3
"""Retries of a unit after its worker dies. Worker restarts are unlimited, because preemptible
machines lose workers for reasons unrelated to the unit."""
MAX_FRUITLESS_RUNS = 2
"""Consecutive graph failures allowed without a complete unit. The loss of a node can end a graph
of Ray Data, and a new graph then runs the remaining units."""


@dataclass(frozen=True)
class UnitOutcome:
    """Result of one source of a unit. Workers send it as a dict."""

    unit: str = ""
    clips: int = 0
    """Number of rows of the source."""
    seconds: float = 0.0
    """Total duration of the rows, in seconds."""
    reason: str = ""
    """Reason for the reject, or empty."""
    failed: str = ""
    """Reason why the unit cannot be written, or empty."""


def run_units(
    units: Sequence[dict[str, Any]],
    worker: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    num_workers: int | None,
    output: Path,
    rows_folder: str,
) -> Iterator[UnitOutcome]:
    """Yields one outcome for each source when it is done.

    Args:
        units: Rows for the worker. `name` is the name of the shard.
        worker: A class whose instances turn a unit into rows, each a `UnitOutcome` as a dict.
        arguments: Arguments of its constructor.
        num_workers: Number of workers; None means one per CPU.
        output: Folder of the output.
        rows_folder: Subfolder with the shards of complete units.

    Raises:
        UserError: If the output cannot be written.
        JobFailed: If workers cannot start, or a unit repeatedly crashes its worker.
    """
    reported: Counter[str] = Counter()
    num_fruitless = 0
    left = list(units)
    while left:
        seen: Counter[str] = Counter()
        try:
            for outcome in _outcomes(left, worker, arguments, num_workers):
                if outcome.failed:
                    raise UserError(f"output ({output}) {outcome.failed}")
                # A retried unit reports its first sources again.
                seen[outcome.unit] += 1
                if seen[outcome.unit] > reported[outcome.unit]:
                    reported[outcome.unit] += 1
                    yield outcome
            return
        except ray.exceptions.RayError as error:
            num_before = len(left)
            left = [u for u in left if not (output / rows_folder / f"{u['name']}.parquet").exists()]
            num_fruitless = num_fruitless + 1 if len(left) == num_before else 0
            is_our_bug = isinstance(error, ray.exceptions.RayTaskError)
            if is_our_bug or num_fruitless >= MAX_FRUITLESS_RUNS:
                raise _failure(error, output) from error
            units_left = counted(len(left), "unit")
            logger.warning("Ray failed (%s); continuing with %s", _last_line(error), units_left)


def _failure(error: ray.exceptions.RayError, output: Path) -> JobFailed:
    return JobFailed(
        f"the workers that write {output} failed: {_last_line(error)}. "
        "What is complete stays, and the same command goes on from there"
    )


def _last_line(error: ray.exceptions.RayError) -> str:
    return str(error).strip().splitlines()[-1][:300]


def _outcomes(
    units: Sequence[dict[str, Any]],
    worker: Callable[..., Any],
    arguments: tuple[Any, ...],
    num_workers: int | None,
) -> Iterator[UnitOutcome]:
    """Runs the graph and yields its rows."""
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    num_actors = max(1, min(num_workers or num_cpus, len(units)))
    with warnings.catch_warnings():
        # Ray warns about `ray_remote_args` but offers no other way to set `max_restarts`.
        warnings.filterwarnings("ignore", message=".*ray_remote_args")
        # 1:N and CPU-bound. Decoding uses one core. An actor starts its decoder or model once.
        # An actor takes one unit at a time, so that no unit waits behind a long one while
        # another actor is idle. The pool runs with the actors that have started, so a busy
        # cluster slows the job but does not block it.
        outcomes = ray.data.from_items(list(units), override_num_blocks=len(units)).flat_map(
            worker,
            fn_constructor_args=arguments,
            compute=ray.data.ActorPoolStrategy(size=num_actors, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            max_restarts=-1,
            max_task_retries=MAX_UNIT_RETRIES,
        )
    # Rows report progress in a few bytes. Each row leaves its worker immediately.
    outcomes.context.target_max_block_size = 1
    outcomes.context.enable_progress_bars = False
    for row in outcomes.iter_rows():
        yield UnitOutcome(**row)
