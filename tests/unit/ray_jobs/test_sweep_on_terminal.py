"""The trials of a sweep on a terminal: one table, redrawn as trials start, get on and end."""

import pytest

from tests.helpers.terminal import run_on_terminal, screen

SWEEP = """
import sys, time
from functools import partial
from pathlib import Path
from pipelines.evaluation.rungs import add_rung
from pipelines.sweep.trial_files import add_trial, end_trial, trial_folder
from ray_jobs.cli.console import StageProgress
from ray_jobs.sweep import _trials_on_terminal
from tests.helpers.sweeps import example_trials, sweep_config

folder = Path(sys.argv[1])
config = sweep_config(folder)
progress = StageProgress("sweep", "trials", partial(_trials_on_terminal, config, folder))
done = 0.0

def show(note=""):
    time.sleep(0.26)
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
if sys.argv[2] == "finish":
    progress.finish("14 trials: 14 completed")
else:
    progress.close()
"""


@pytest.mark.parametrize("columns", [100, 60, 40])
def test_a_terminal_shows_one_table_of_trials(tmp_path, columns):
    written = run_on_terminal(SWEEP, str(tmp_path), "leave", columns=columns)
    lines = [line for line in screen(written, columns) if line]
    assert lines[0].startswith("sweep     13/14 trials")
    assert sum(line.startswith("trial  ") for line in lines) == 1
    rows = [line for line in lines if line.startswith("trial-")]
    assert rows[0].startswith("trial-013")
    assert "running" in rows[0]
    assert len(rows) == len(set(rows)) == 12
    assert lines[-1] == "and 2 more"
    assert max(map(len, lines)) <= columns


def test_the_end_of_a_sweep_replaces_its_table(tmp_path):
    written = run_on_terminal(SWEEP, str(tmp_path), "finish", columns=100)
    (line,) = [line for line in screen(written, 100) if line]
    assert line.startswith("sweep     14 trials: 14 completed (")
