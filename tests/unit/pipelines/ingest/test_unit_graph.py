"""Tasks, reports and retries of units, with workers that only count."""

import contextlib
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from pipelines.errors import JobFailed, UserError
from pipelines.ingest import unit_graph
from pipelines.ingest.unit_graph import (
    MAX_UNITS_PER_TASK,
    _StoredUnit,
    _tasks,
    _write_units,
    run_units,
)
from pipelines.ingest.unit_runner import Counts, UnitOutcome, UnitRunner


class Counter:
    """Writes a shard for each unit; some units end their process or fail as their row says."""

    def __init__(self, output):
        self._output = Path(output)

    def __call__(self, unit):
        name = unit["name"]
        with (self._output / "calls").open("a") as calls:
            calls.write(f"{name}\n")
        for number in range(unit["sources"]):
            yield asdict(UnitOutcome(name, clips=2, reason="" if number else "not_media"))
            is_first = not (self._output / "died").exists()
            if unit.get("dies") == number and (is_first or unit.get("always")):
                (self._output / "died").touch()
                os._exit(1)
        if unit.get("failed"):
            yield asdict(UnitOutcome(name, failed=unit["failed"]))
        else:
            (self._output / "clips" / f"{name}.parquet").touch()


def rows(count, **special):
    return [
        {"name": f"unit {number}", "sources": 3, **special.get(f"of_{number}", {})}
        for number in range(count)
    ]


def run(units, output, num_workers=2):
    (output / "clips").mkdir()
    return run_units(
        units,
        Counter,
        (str(output),),
        num_workers=num_workers,
        output=output,
        rows_folder="clips",
        scratch=output,
    )


def stored(count, begin=0):
    return [_StoredUnit(str(n), n, n + 1) for n in range(begin, begin + count)]


@pytest.mark.parametrize("num_workers", [1, 2, 7, 500])
@pytest.mark.parametrize("count", [1, 2, 9, 100, 1_001])
def test_tasks_hold_every_unit_once_and_shrink(count, num_workers):
    sizes = [task["end"] - task["begin"] for task in _tasks(stored(count), num_workers)]
    assert sum(sizes) == count
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= MAX_UNITS_PER_TASK
    assert sizes[-1] == 1
    assert len(sizes) >= min(count, 4 * num_workers)


def test_tasks_skip_the_units_between():
    units = [*stored(40), *stored(40, begin=50)]
    covered = [n for task in _tasks(units, 1) for n in range(task["begin"], task["end"])]
    assert covered == [*range(40), *range(50, 90)]


def test_a_runner_reports_what_has_changed(tmp_path):
    (tmp_path / "clips").mkdir()
    file = tmp_path / "units"
    units = _write_units(rows(2, of_0={"path": "a\nb\u2028\udcff"}), file)
    task = {"begin": 0, "end": units[-1].end}
    once = list(UnitRunner(Counter, (str(tmp_path),), file, 3600.0)(task))
    assert once == [{"report": '[["unit 0", "", 3, 6, 1], ["unit 1", "", 3, 6, 1]]'}]
    each = list(UnitRunner(Counter, (str(tmp_path),), file, 0.0)(task))
    assert len(each) == 6
    assert each[-2:] == [{"report": f'[["unit 1", "", {n}, {2 * n}, 1]]'} for n in (2, 3)]


@pytest.mark.ray
def test_each_unit_is_run_and_counted_once(tmp_path, local_ray):
    progress = list(run(rows(100), tmp_path))
    assert progress[-1] == Counts(300, 600, 100)
    assert [done.sources for done in progress] == sorted({done.sources for done in progress})
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sorted(calls) == sorted(row["name"] for row in rows(100))


@pytest.mark.ray
def test_the_units_of_a_dead_worker_are_counted_once(tmp_path, local_ray):
    progress = list(run(rows(30, of_5={"dies": 1}), tmp_path))
    assert (tmp_path / "died").exists()
    assert progress[-1] == Counts(90, 180, 30)


@pytest.fixture
def few_attempts(monkeypatch):
    """Each attempt takes the start of a process."""
    monkeypatch.setattr(unit_graph, "MAX_UNIT_RETRIES", 0)
    monkeypatch.setattr(unit_graph, "MAX_FRUITLESS_RUNS", 1)


@pytest.mark.ray
def test_a_unit_that_always_kills_its_worker_ends_the_run(tmp_path, local_ray, few_attempts):
    with pytest.raises(JobFailed, match=r"failed with 1 unit left: a worker process died"):
        list(run(rows(1, of_0={"dies": 1, "always": True}), tmp_path))


@pytest.mark.ray
def test_units_that_are_lost_without_a_word_are_missed(
    tmp_path, local_ray, few_attempts, monkeypatch
):
    monkeypatch.setattr(unit_graph, "_told_in_one_line", contextlib.nullcontext)
    with pytest.raises(JobFailed, match=r"failed with 1 unit left: Ray lost tasks"):
        list(run(rows(1, of_0={"dies": 1, "always": True}), tmp_path))


@pytest.mark.ray
@pytest.mark.slow
def test_a_unit_that_always_kills_its_worker_does_not_block_others(
    tmp_path, local_ray, few_attempts
):
    units = rows(3, of_1={"dies": 1, "always": True})
    with pytest.raises(JobFailed, match=r"failed with 1 unit left: a worker process died"):
        list(run(units, tmp_path, num_workers=1))
    assert {file.stem for file in (tmp_path / "clips").iterdir()} == {"unit 0", "unit 2"}


@pytest.mark.ray
def test_a_unit_that_cannot_be_written_ends_the_run(tmp_path, local_ray):
    with pytest.raises(UserError, match="cannot be written: full"):
        list(run(rows(30, of_9={"failed": "cannot be written: full"}), tmp_path))
