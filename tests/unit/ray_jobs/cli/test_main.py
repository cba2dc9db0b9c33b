"""The installed command: its overview and help come from a table, and agree with the jobs."""

import importlib
import subprocess
import sys

import pytest

from pipelines.config.describe import setting_descriptions
from ray_jobs.cli.configurations import configuration_folder
from ray_jobs.cli.jobs import JOBS
from ray_jobs.cli.main import main

HEAVY = "torch ray mlflow optuna sklearn matplotlib pyarrow av"


def loaded_by(*arguments: str) -> set[str]:
    """The heavy packages that the command imports."""
    program = (
        "import sys\nfrom ray_jobs.cli.main import main\n"
        f"try:\n    main({list(arguments)!r})\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', *(set({HEAVY!r}.split()) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("LOADED"), done.stderr
    return set(last.split()[1:])


def test_the_overview_imports_no_job(capsys):
    assert loaded_by("--help") == set()
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for job in JOBS.values():
        assert f"{job.name:17} {job.about}" in printed


def test_the_help_of_a_job_imports_neither_ray_nor_torch():
    assert loaded_by("run", "--help") <= {"av"}


def test_an_unknown_job_is_told_with_those_that_there_are(capsys):
    assert main(["trian"]) == 2
    assert "no job 'trian'; did you mean pretrain? jobs: run, ingest" in capsys.readouterr().err


@pytest.mark.parametrize("summary", JOBS.values(), ids=lambda summary: summary.name)
def test_the_table_agrees_with_the_job(summary):
    job = importlib.import_module(f"ray_jobs.{summary.module}").JOB
    assert job.summary is summary
    assert job.schema is summary.schema()
    names = {setting.name for setting in setting_descriptions(job.schema)}
    assert set(summary.first) <= names
    assert summary.media is None or summary.media in names


def test_every_folder_of_configurations_is_that_of_a_job():
    folders = {path.name for path in configuration_folder().iterdir() if path.is_dir()}
    assert folders - {"recipe", "hardware"} <= JOBS.keys()


def test_help_lists_each_setting_once_with_its_section(capsys):
    assert main(["pretrain", "--help"]) == 0
    printed = capsys.readouterr().out
    for part in (
        "a YAML file or a short name (audioset, from_weights,",
        "\nmost common settings:\n  dataset (required)",
        "\nmodel.video: ",
        "  log_every (10; may change) Steps",
        "  seed (0)",
    ):
        assert part in printed
    schema = JOBS["pretrain"].schema()
    for setting in setting_descriptions(schema):
        assert printed.count(f"\n  {setting.name} (") == 1


def test_help_marks_no_setting_of_a_job_that_does_not_go_on(capsys):
    assert main(["evaluate", "--help"]) == 0
    assert "may change" not in capsys.readouterr().out


def test_ctrl_c_while_a_job_is_imported_is_one_line(monkeypatch, capsys):
    imported = importlib.import_module

    def interrupted(name, *rest):
        if name == "ray_jobs.serve":
            raise KeyboardInterrupt
        return imported(name, *rest)

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert main(["serve", "xkd-video@champion"]) == 130
    assert capsys.readouterr().err == "\nserve: interrupted before it began\n"
