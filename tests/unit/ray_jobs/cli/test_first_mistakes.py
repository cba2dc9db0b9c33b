"""What people who know nothing of XKD type wrong is one line that says what to type."""

import re

import pytest

from pipelines.config.promote import PromoteConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import UserError
from pipelines.registry.promote import checkpoint_scores
from ray_jobs.cli.configurations import misplaced
from ray_jobs.cli.main import main
from tests.helpers.clip_datasets import write_dataset


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["runn"], r"xkd: no job 'runn'; did you mean run\? jobs: .*"),
        (["import"], r"xkd: no job 'import'; did you mean import-checkpoint\? jobs: .*"),
        (["x"], r"xkd: no job 'x'; jobs: run, ingest, .*"),
        (["run"], r"run: the input or a configuration is missing, as in `xkd run /my/input`; .*"),
        (["run", "--dry-run"], r"run: the input or a configuration is missing, .*"),
        (["ingest"], r"ingest: a configuration is missing, .*; short names: published, smoke; .*"),
        (["dataset"], r"dataset: the dataset or a configuration is missing, .*"),
        (
            ["run", "--dryrun", "x"],
            r"run: unrecognized arguments: --dryrun; did you mean --dry-run\?",
        ),
        (["run", "--quiet", "x"], r"run: unrecognized arguments: --quiet; see xkd run --help"),
        (["run", "smoke.yaml"], r"run: .*\(smoke\.yaml\) does not exist; .*: xkd run smoke"),
        (["run", "other.yaml"], r"run: configuration file \(other\.yaml\) does not exist"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(line, printed.err.strip()), printed.err


def test_help_and_version_are_told_as_words_too(capsys):
    assert main(["help"]) == 0
    assert "xkd run FOLDER" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|xkd .*", capsys.readouterr().out.strip())


def test_a_path_that_is_here_and_not_in_the_home_is_named(tmp_path, monkeypatch):
    (tmp_path / "home/both").mkdir(parents=True)
    for name in ("here", "both"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    overrides = ["input=here", "output=both", "name=new", f"dataset={tmp_path}/here", "epochs=3"]
    monkeypatch.delenv("XKD_HOME", raising=False)
    assert misplaced(overrides) == []
    monkeypatch.setenv("XKD_HOME", str(tmp_path / "home"))
    assert misplaced(overrides) == [
        f"input (here) is relative to XKD_HOME ({tmp_path}/home); for the one here give "
        f"input={tmp_path}/here"
    ]


def test_the_folder_of_a_run_names_its_clips(tmp_path):
    write_dataset(tmp_path / "run/clips", 3)
    with pytest.raises(UserError, match=rf"folder of a run; give {tmp_path}/run/clips"):
        ClipDataset.open(tmp_path / "run")
    assert ClipDataset.open(tmp_path / "run/clips").num_clips == 3


def test_scores_that_are_not_there_are_not_called_wrong(tmp_path):
    config = PromoteConfig(checkpoint=str(tmp_path), scores=str(tmp_path / "scores.json"))
    with pytest.raises(UserError, match=r"scores\.json\) does not exist; evaluate writes it"):
        checkpoint_scores(config)
