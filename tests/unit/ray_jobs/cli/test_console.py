import re

import pytest

from ray_jobs.cli import console
from ray_jobs.cli.console import StageProgress
from tests.helpers.terminal import run_on_terminal


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


def test_nothing_is_counted_before_anything_is_known(clock, capsys):
    clock[0] = 60.0
    StageProgress("evaluate", "clips")(0, 1, "")
    progress = StageProgress("ingest", "sources")
    progress(0, 0, "listing")
    progress(1, 1, "")
    assert capsys.readouterr().out.splitlines() == [
        "evaluate  ...",
        "ingest    ...  listing",
        "ingest    1/1 sources",
    ]


def test_the_first_units_alone_give_no_rate(clock, capsys):
    progress = StageProgress("ingest", "sources")
    progress(0, 300, "")
    clock[0] = 10.0
    progress(1, 300, "")
    assert capsys.readouterr().out.splitlines()[-1] == "ingest    1/300 sources"
    clock[0] = 20.0
    progress(61, 300, "")
    assert capsys.readouterr().out.splitlines()[-1].endswith("3.0 sources/s  1 min 18 s left")


ON_TERMINAL = """
import logging, sys, time
from ray_jobs.cli.console import StageProgress, close_progress
progress = StageProgress("pretrain", "steps")
note = "the feed is slow: " + "many words about what a worker waits for " * 4
for step in (0, 10, 20):
    progress(step, 40, note)
    time.sleep(0.3)
print("a line of another library", file=sys.stderr)
if sys.argv[1] == "finish":
    progress.finish("40 steps")
else:
    close_progress()
    print("it failed")
"""


def on_terminal(end: str) -> list[str]:
    """The lines that a program writes to a terminal of 80 columns, without their colors."""
    written = run_on_terminal(ON_TERMINAL, end)
    assert written.count(b"\x1b[?25l") == written.count(b"\x1b[?25h") == 1  # cursor
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.mark.parametrize("end", ["finish", "fail"])
def test_a_bar_fits_the_terminal_and_gives_it_back(end):
    lines = on_terminal(end)
    assert max(map(len, lines)) <= 80
    assert any(
        re.match(r"pretrain  20/40 steps +\S+ +\d+\.\d steps/s  \d+ s left", x) for x in lines
    )
    assert "a line of another library" in lines
    assert lines[-1] == ("it failed" if end == "fail" else "pretrain  40 steps (1 s)")


def test_a_dumb_terminal_gets_plain_lines(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(console.sys.stdout, "isatty", lambda: True)
    progress = StageProgress("ingest", "sources")
    progress(3, 3, "")
    assert capsys.readouterr().out == "ingest    3/3 sources\n"


def test_the_time_stands_behind_the_first_line_of_an_outcome(clock, capsys):
    progress = StageProgress("ingest", "sources")
    clock[0] = 7.0
    progress.finish("40 clips\n  splits are made from content")
    assert capsys.readouterr().out == "ingest    40 clips (7 s)\n  splits are made from content\n"
