import pytest

from ray_jobs.cli import console
from ray_jobs.cli.console import StageProgress


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets, seconds."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_rate_counts_only_what_was_done_since_the_start(clock, capsys):
    progress = StageProgress("sweep", "trials")
    progress(8.4, 15, "")  # of an earlier call
    clock[0] = 3600.0
    progress(11.4, 15, "best trial-0003: 50.0%")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "sweep     11/15 trials  3.0 trials/h  1 h 12 min left  best trial-0003: 50.0%"


def test_a_rate_does_not_count_the_time_before_the_first_unit(clock, capsys):
    progress = StageProgress("ingest", "sources")
    progress(0, 100, "listing")
    clock[0] = 60.0
    progress(0, 100, "starting")
    clock[0] = 70.0
    progress(50, 100, "")
    assert capsys.readouterr().out.splitlines()[-1].endswith("5.0 sources/s  10 s left")
