"""The trials of a sweep on a terminal: one table, redrawn as trials start, get on and end."""

from io import StringIO

import pytest
from rich.console import Console

from ray_jobs.cli.console import FittedTable
from ray_jobs.sweep import _trial_rows
from tests.helpers.sweeps import example_trials, sweep_config
from tests.helpers.terminal import run_on_terminal, screen

SWEEP = """
import sys, time
from functools import partial
from pathlib import Path
from pipelines.evaluation.rungs import add_rung
from pipelines.sweep.trial_files import add_trial, end_trial, trial_folder
from ray_jobs.cli import console
from ray_jobs.cli.console import StageProgress
from ray_jobs.sweep import _trials_on_terminal
from tests.helpers.sweeps import example_trials, sweep_config

console._REFRESHES_A_SECOND = 1000.0
folder = Path(sys.argv[1])
config = sweep_config(folder)
progress = StageProgress("sweep", "trials", partial(_trials_on_terminal, config, folder))
done = 0.0

def show(note=""):
    time.sleep(0.002)
    progress(done, 14, note)

show()
for trial in example_trials(config):
    add_trial(folder, trial.number, trial.values)
    show()
    for rung in trial.rungs[:3]:
        add_rung(trial_folder(folder, trial.number), rung)
    show("best trial-000: 61.9%")
    if trial.number < 13:
        end_trial(folder, trial.number, trial.status, trial.reason)
        done += 1
show("best trial-000: 61.9%")
progress.close()
"""


def test_a_terminal_shows_one_table_of_trials(tmp_path):
    written = run_on_terminal(SWEEP, str(tmp_path), columns=100)
    lines = [line for line in screen(written, 100) if line]
    assert lines[0].startswith("sweep     13/14 trials")
    assert sum(line.startswith("trial  ") for line in lines) == 1
    rows = [line for line in lines if line.startswith("trial-")]
    assert rows[0].startswith("trial-013  running    0")
    assert len(rows) == len(set(rows)) == 12
    assert all("refinement" in row and len(row) <= 100 for row in rows)
    assert lines[-1] == "and 2 more"


@pytest.mark.parametrize(
    ("columns", "header"),
    [
        (100, "trial      status     rungs  video  audio  objective  values"),
        (60, "trial      status     rungs  video  audio  objective"),
        (40, "trial      status     rungs  video"),
        (12, "trial"),
    ],
)
def test_a_narrow_terminal_leaves_out_columns(tmp_path, columns, header):
    config = sweep_config(tmp_path)
    table = FittedTable(_trial_rows(config, example_trials(config)), "and 2 more")
    console = Console(width=columns, file=StringIO())
    console.print(table)
    first, *rows, last = console.file.getvalue().splitlines()
    assert (first.rstrip(), last.rstrip()) == (header, "and 2 more")
    assert [row[:9] for row in rows] == [f"trial-{number:03d}" for number in range(14)]
    assert max(map(len, rows)) <= columns
