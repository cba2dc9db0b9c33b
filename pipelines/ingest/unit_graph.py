"""The graph of ingest and embed: units go through a pool of workers, on Ray Data.

Ray Data schedules, bounds and retries; a worker writes the shards of its unit itself (`shards`).
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

logger = logging.getLogger(__name__)

MAX_UNIT_RETRIES = 3
"""Times that Ray gives a unit to another worker after one died over it. How often workers may die
is not limited: on machines that come and go, that says nothing about the work."""
MAX_FRUITLESS_RUNS = 2
"""Times in succession that the graph may fail without a unit becoming complete. A node that dies
at the wrong moment ends a graph of Ray Data; what is left is then put into another one."""


@dataclass(frozen=True)
class UnitOutcome:
    """What a worker reports of one source of a unit; `asdict` on its way between processes."""

    unit: str = ""
    clips: int = 0
    """Rows that the source gave."""
    seconds: float = 0.0
    """Their length."""
    reason: str = ""
    """Why the source is rejected; empty if it is not."""
    failed: str = ""
    """Why the unit cannot be written; empty if it can."""


def run_units(
    units: Sequence[dict[str, Any]],
    worker: Callable[..., Any],
    arguments: tuple[Any, ...],
    *,
    num_workers: int | None,
    output: Path,
    rows_folder: str,
) -> Iterator[UnitOutcome]:
    """Gives one outcome for each source as it is done.

    Args:
        units: Rows for the worker; `name` is that of the shard.
        worker: A class whose instances turn a unit into rows, each a `UnitOutcome` as a dict.
        arguments: Of its constructor.
        num_workers: By default one for each CPU.
        output: What is written.
        rows_folder: Part of it where the shard of a complete unit is.

    Raises:
        UserError: If the output cannot be written.
        JobFailed: If workers cannot be made, or a unit ends its worker again and again.
    """
    told: Counter[str] = Counter()
    num_fruitless = 0
    left = list(units)
    while left:
        seen: Counter[str] = Counter()
        try:
            for outcome in _outcomes(left, worker, arguments, num_workers):
                if outcome.failed:
                    raise UserError(f"output ({output}) {outcome.failed}")
                # A unit that starts again reports its first sources a second time.
                seen[outcome.unit] += 1
                if seen[outcome.unit] > told[outcome.unit]:
                    told[outcome.unit] += 1
                    yield outcome
            return
        except ray.exceptions.RayError as error:
            num_before = len(left)
            left = [u for u in left if not (output / rows_folder / f"{u['name']}.parquet").exists()]
            num_fruitless = num_fruitless + 1 if len(left) == num_before else 0
            is_our_bug = isinstance(error, ray.exceptions.RayTaskError)
            if is_our_bug or num_fruitless >= MAX_FRUITLESS_RUNS:
                raise _failure(error, output) from error
            logger.warning("Ray failed (%s); going on with %d units", _last_line(error), len(left))


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
    """The graph."""
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    num_actors = max(1, min(num_workers or num_cpus, len(units)))
    with warnings.catch_warnings():
        # Ray wants to rename how `max_restarts` is given and has no other name for it yet.
        warnings.filterwarnings("ignore", message=".*ray_remote_args")
        # 1:N, CPU-bound: a core each, because decoding takes one; an actor, because a decoder or a
        # model starts once. One unit at a time in an actor, so that none waits behind a long one
        # while another actor is idle. The pool works with the actors that have started, so a busy
        # cluster makes it slow and not stuck.
        outcomes = ray.data.from_items(list(units), override_num_blocks=len(units)).flat_map(
            worker,
            fn_constructor_args=arguments,
            compute=ray.data.ActorPoolStrategy(size=num_actors, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            max_restarts=-1,
            max_task_retries=MAX_UNIT_RETRIES,
        )
    # The rows are news of a few bytes: each leaves its worker at once, not with its unit.
    outcomes.context.target_max_block_size = 1
    outcomes.context.enable_progress_bars = False
    for row in outcomes.iter_rows():
        yield UnitOutcome(**row)
