"""Paths of a submission start where the user is, and mean what the cluster sees."""

import json

import pytest
import yaml

from pipelines.errors import UserError
from ray_jobs.submit import probe
from ray_jobs.submit.places import HOME_OF_CLUSTER, MLFLOW_OF_CLUSTER, places
from ray_jobs.submit.submission import submission_of
from tests.helpers.training import unused_port


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    for name in ("XKD_HOME", "MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def submission(job, *arguments, home="/shared"):
    return submission_of(job, arguments, home=home, environment="image")


def found(made):
    return {one["setting"]: one["place"] for one in places(made.config)}


@pytest.mark.parametrize("home", ["results", "./results", "s3:/bucket", "https://host", "s3://"])
def test_a_home_that_the_cluster_would_lose_is_refused(home):
    with pytest.raises(UserError, match=r"(--home|XKD_HOME) \("):
        submission("run", "smoke", home=home)


def test_media_here_are_named_by_their_whole_path(tmp_path):
    (tmp_path / "videos").mkdir()
    made = submission("run", "./videos", "name=a")
    assert made.command(None)[3:] == [f"{tmp_path}/videos", "name=a"]
    assert found(made)["input"] == f"{tmp_path}/videos"


@pytest.mark.parametrize("media", ["/mnt/of the cluster/videos", "s3://bucket/videos"])
def test_media_that_only_the_cluster_sees_are_accepted(media, monkeypatch):
    """Neither the media nor the folder of the run are looked for from here."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused_port()}")
    made = submission("run", media, home="s3://bucket/home")
    assert made.command(None)[3:] == [media]
    assert found(made)["input"] == media
    assert made.config.name == "videos"


def test_the_target_of_an_export_is_where_it_would_be_here(tmp_path):
    made = submission("export", "/mnt/clips", "tars")
    assert made.command(None)[3:] == ["/mnt/clips", f"{tmp_path}/tars"]
    assert found(made) | {"tracking.uri": ""} == {
        "dataset": "/mnt/clips",
        "output": f"{tmp_path}/tars",
        "tracking.uri": "",
    }
    made = submission("pull", "xkd-video@champion", "pulled")
    assert made.command(None)[3:] == ["xkd-video@champion", f"{tmp_path}/pulled"]
    made = submission("dataset", "/mnt/clips", "output=page")
    assert found(made)["output"] == "/shared/page"


def test_a_word_that_is_no_configuration_is_named():
    with pytest.raises(UserError, match=r"argument \(smok\) must be .* did you mean smoke"):
        submission("run", "smok")


def test_files_that_a_suite_names_are_not_uploaded(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    suite = {"checkpoint": "c", "output": "o", "suite": [{"config": "mine.yaml"}]}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    with pytest.raises(UserError, match=r"config \(mine.yaml\) must be a short name"):
        submission("suite", "suite.yaml")


def test_weights_are_looked_for_on_the_cluster(tmp_path):
    values = {"checkpoint": ["models:/a@champion", "runs/b"], "dataset": "clips", "output": "o"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    made = submission("evaluate", "mine.yaml", "cache=features")
    asked = {one["place"]: one["is_written"] for one in places(made.config)}
    assert asked == {
        "/shared/runs/b": False,
        "/shared/clips": False,
        "/shared/o": True,
        "/shared/features": True,
        MLFLOW_OF_CLUSTER: False,
    }
    init = submission("pretrain", "smoke", "init=runs/mine")
    assert found(init)["init.source"] == "/shared/runs/mine"


def test_mlflow_is_asked_from_the_cluster(monkeypatch):
    made = submission("run", "smoke", home="s3://bucket/home")
    (asked,) = [one for one in places(made.config) if one["setting"] == "tracking.uri"]

    def problem(**variables):
        with pytest.MonkeyPatch.context() as environment:
            for name, value in variables.items():
                environment.setenv(name, value)
            return probe._problem(json.loads(json.dumps(asked)), HOME_OF_CLUSTER)

    what, _ = problem(XKD_HOME="s3://bucket/home")
    assert what.startswith("is set neither here nor on the cluster")
    assert problem(XKD_HOME="/shared") == problem(XKD_HOME="file:///shared") == ("", "")
    assert problem(XKD_HOME="s3://b/h", MLFLOW_TRACKING_URI="sqlite:////a.db") == ("", "")
    here = "sqlite:////home/of nobody/mlflow.db"
    assert problem(MLFLOW_TRACKING_URI=here) == ("does not exist on the cluster", f"({here})")
    asked["place"] = found(submission("run", "smoke", "tracking.uri=sqlite:////gone/a.db"))[
        "tracking.uri"
    ]
    assert problem()[0] == "does not exist on the cluster"
    asked["place"] = MLFLOW_OF_CLUSTER
    address = f"http://127.0.0.1:{unused_port()}"
    what, said = problem(MLFLOW_TRACKING_URI=address)
    assert what == "cannot be reached from the cluster"
    assert address in said


@pytest.mark.parametrize("environment", ["pip", "uv"])
def test_packages_without_a_checkout_are_refused_at_once(environment, monkeypatch, tmp_path):
    monkeypatch.setattr("ray_jobs.submit.submission.PACKAGES", tmp_path)
    with pytest.raises(UserError, match="need a checkout"):
        submission_of("run", ["smoke"], home="/shared", environment=environment)
