"""The first command that a person types: `xkd run FOLDER`."""

import re
from pathlib import Path

import pytest
import torch

from pipelines.config.run import RunConfig
from pipelines.config.written import write_settings
from pipelines.errors import UserError
from ray_jobs.cli import own_media
from ray_jobs.cli.configurations import find_configuration
from ray_jobs.cli.job import run_job
from ray_jobs.cli.jobs import JOBS
from ray_jobs.cli.own_media import arguments_for_media, run_name
from ray_jobs.cli.settings import load_settings
from ray_jobs.run import JOB
from tests.helpers.media import write_numbered

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@pytest.fixture(autouse=True)
def _at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XKD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "My videos (2024).d"
    folder.mkdir()
    write_numbered(folder / "a.mp4", 50)
    return folder


def dry_run(*arguments: object) -> int:
    return run_job(JOB, [*map(str, arguments), "--dry-run"])


@pytest.mark.parametrize(
    ("media", "name"),
    [
        ("/data/videos", "videos"),
        ("/data/My videos (2024)", "My-videos-2024"),
        ("/data/.hidden", "hidden"),
        ("/data/a=b, c.d", "a-b-c.d"),
        ("/data/été", "ete"),
        ("/data/list.csv", "list"),
        ("/data/v1.2", "v1.2"),
        ("s3://bucket/some/clips/", "clips"),
        ("s3://bucket", "bucket"),
        ("https://host/lists/all.jsonl?token=1", "all"),
        ("/data/" + "x" * 200, "x" * 60),
    ],
)
def test_a_run_is_named_after_its_media(media, name):
    assert run_name(media) == name


@pytest.mark.parametrize("media", ["/data/视频", "/data/видео 1", "/", "/data/---", "/data/\udcff"])
def test_a_name_that_cannot_be_kept_is_valid_and_its_own(media):
    name = run_name(media)
    assert NAME.fullmatch(name)
    assert name != run_name(media + "/other/" + Path(media).name)


def test_a_folder_alone_is_a_run_on_the_laptop_configuration(videos, capsys):
    assert dry_run(videos) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("run: uses ")
    assert f"conf/run/laptop.yaml (Ray has no GPU) for {videos}, named My-videos-2024-.d" in first
    assert f"input: {videos}" in rest
    assert "name: My-videos-2024-.d" in rest


def test_a_relative_folder_starts_where_the_user_is(videos, capsys, monkeypatch):
    monkeypatch.chdir(videos)
    assert dry_run(".", "name=mine", "pretrain.epochs=20") == 0
    printed = capsys.readouterr().out
    assert f"input: {videos}" in printed
    assert "name: mine" in printed
    assert "epochs: 20.0" in printed


def test_a_gpu_chooses_the_configuration_for_one(videos, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = arguments_for_media(JOBS["run"], str(videos), [])
    assert chosen.file.name == "one_gpu.yaml"
    assert "(Ray has 2 GPUs)" in chosen.note
    assert "eight_gpus" in chosen.note


def test_a_cluster_that_does_not_answer_is_told_once(videos, capsys):
    assert dry_run(videos, "ray.address=127.0.0.1:1") == 2
    assert capsys.readouterr().err.count("ray.address (127.0.0.1:1) does not answer") == 1


def test_a_run_that_has_begun_goes_on_with_its_settings(videos, tmp_path, capsys, monkeypatch):
    chosen = arguments_for_media(JOBS["run"], str(videos), ["name=mine", "pretrain.seed=3"])
    config = load_settings(RunConfig, chosen.file, chosen.overrides)
    begun = tmp_path / "home" / "runs" / "mine"
    begun.mkdir(parents=True)
    write_settings(begun / "config.yaml", config)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # another machine
    again = arguments_for_media(JOBS["run"], str(videos), ["name=mine"])
    assert again.note.startswith("continues with home/runs/mine/config.yaml")
    assert load_settings(RunConfig, again.file, again.overrides) == config


def test_a_run_whose_home_was_renamed_goes_on_in_the_new_one(videos, tmp_path, monkeypatch):
    chosen = arguments_for_media(JOBS["run"], str(videos), ["name=mine"])
    begun = tmp_path / "home" / "runs" / "mine"
    begun.mkdir(parents=True)
    write_settings(begun / "config.yaml", load_settings(RunConfig, chosen.file, chosen.overrides))
    (tmp_path / "home").rename(tmp_path / "moved")
    monkeypatch.setenv("XKD_HOME", str(tmp_path / "moved"))
    again = arguments_for_media(JOBS["run"], str(videos), ["name=mine"])
    assert again.note.startswith("continues with moved/runs/mine/config.yaml")
    config = load_settings(RunConfig, again.file, again.overrides)
    assert config.output == f"{tmp_path}/moved/runs"


def test_a_name_that_is_taken_by_other_media_is_refused(videos, tmp_path, capsys):
    first = arguments_for_media(JOBS["run"], str(videos), [])
    begun = tmp_path / "home" / "runs" / "My-videos-2024-.d"
    begun.mkdir(parents=True)
    write_settings(begun / "config.yaml", load_settings(RunConfig, first.file, first.overrides))
    other = tmp_path / "other" / videos.name
    other.mkdir(parents=True)
    write_numbered(other / "b.mp4", 50)
    assert dry_run(other) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"is a run in {tmp_path}/home/runs over {videos}, not over {other};" in line
    assert "name=My-videos-2024-.d-2" in line


def test_a_short_name_goes_before_a_folder_of_that_name(tmp_path, capsys):
    (tmp_path / "smoke").mkdir()
    write_numbered(tmp_path / "smoke" / "a.mp4", 50)
    chosen = find_configuration(JOBS["run"], "smoke", [], arguments_for_media)
    assert chosen.file.name == "smoke.yaml"
    assert "./smoke means the path" in chosen.note
    assert dry_run("./smoke") == 0
    assert f"for {tmp_path}/smoke, named smoke" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["/no/such/folder"],
            r"argument \(/no/such/folder\) must be .* no such path exists; short",
        ),
        (["smoek"], r"argument \(smoek\) .* did you mean smoke\?"),
        (["nowhere.yaml"], r"configuration file \(nowhere\.yaml\) does not exist"),
    ],
)
def test_what_is_neither_media_nor_a_configuration_is_refused(arguments, message, capsys):
    assert dry_run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_media_for_a_job_that_needs_a_configuration_says_how(videos):
    with pytest.raises(UserError, match=r"for media, add input=.* after it; short names: publish"):
        find_configuration(JOBS["ingest"], str(videos), [])


def test_a_folder_without_media_is_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert dry_run("empty") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/empty" in line


def test_short_names_are_those_of_every_job_and_need_no_checkout():
    for job, name in (("ingest", "published"), ("pretrain", "kinetics400"), ("run", "one_gpu")):
        file = find_configuration(JOBS[job], name, []).file
        assert file.is_absolute()
        assert file.is_file()


def test_settings_may_stand_on_both_sides_of_options(videos, capsys):
    assert run_job(JOB, [str(videos), "--dry-run", "name=after"]) == 0
    assert "name: after" in capsys.readouterr().out


def test_gpus_of_a_cluster_count(videos, monkeypatch):
    monkeypatch.setattr(own_media, "_most_gpus", lambda config: 1 if config.address else 0)
    chosen = arguments_for_media(JOBS["run"], str(videos), ["ray.address=10.0.0.1:6379"])
    assert chosen.file.name == "one_gpu.yaml"
