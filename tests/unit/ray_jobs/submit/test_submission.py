"""What `xkd submit` sends, and what it finds wrong before it sends anything."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from ray.job_submission import JobDetails, JobStatus, JobType

from pipelines.config.embed import EmbedConfig
from pipelines.config.pretrain import PretrainConfig
from pipelines.config.run import RunConfig
from pipelines.errors import UserError
from pipelines.tracking.code_version import CODE_VERSION, code_version
from ray_jobs.cli.main import main
from ray_jobs.submit import probe
from ray_jobs.submit.checks import _place_mistakes, probe_code, resource_mistakes
from ray_jobs.submit.follow import listed
from ray_jobs.submit.package import staged
from ray_jobs.submit.places import HOME_OF_CLUSTER, places
from ray_jobs.submit.server import connected_client
from ray_jobs.submit.submission import pinned_packages, submission_of
from tests.helpers.bucket import BUCKET, serving
from tests.helpers.training import tiny_config, unused_port


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("XKD_HOME", "MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def submission(*arguments, home=None, environment="image", job="pretrain"):
    return submission_of(job, arguments, home=home, environment=environment)


def test_places_are_read_as_the_cluster_reads_them(monkeypatch):
    found = submission("smoke", home="s3://bucket/home").config
    assert isinstance(found, PretrainConfig)
    assert {(one["setting"], one["place"], one["is_written"]) for one in places(found)} >= {
        ("dataset", "s3://bucket/home/runs/smoke/clips", False),
        ("output", "s3://bucket/home/runs/smoke/pretrain", True),
    }
    unknown = {one["setting"]: one["place"] for one in places(submission("smoke").config)}
    assert unknown["dataset"].startswith(f"{HOME_OF_CLUSTER}/runs/")
    monkeypatch.setenv("XKD_HOME", "/here")
    assert submission("smoke").home == "/here"


def test_every_kind_of_place_is_found():
    many = {
        "model": "models:/m@champion",
        "input": "s3://bucket/media",
        "output": "/data/out",
        "tracking": {"uri": "http://mlflow:5000"},
    }
    found = {one["setting"]: one["place"] for one in places(EmbedConfig.model_validate(many))}
    assert found["input"] == "s3://bucket/media"
    assert found["output"] == "/data/out"
    assert found["tracking.uri"] == "http://mlflow:5000"
    run = submission("s3://bucket/videos", "name=a", job="run", home="/data").config
    assert isinstance(run, RunConfig)
    found = {one["setting"]: one["place"] for one in places(run)}
    assert found["input"] == "s3://bucket/videos"


def test_only_code_and_a_merged_configuration_are_uploaded(tmp_path):
    (tmp_path / "base.yaml").write_text("epochs: 3\n")
    values = json.loads(tiny_config(tmp_path, tmp_path / "clips").model_dump_json())
    values.pop("epochs")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"base": "base.yaml", **values}))
    (tmp_path / "secret.env").write_text("TOKEN=1")
    made = submission(str(tmp_path / "mine.yaml"), "seed=5", home="/data")
    with staged(made) as package:
        names = [name for name, _ in package.files]
        assert made.command(package.config) == [
            *("python", "-m", "ray_jobs.pretrain", "submitted.yaml", "seed=5")
        ]
        there = yaml.safe_load((package.folder / "submitted.yaml").read_text())
        assert there["epochs"] == 3
        assert "base" not in there
        assert {name.split("/")[0] for name in names} == {
            *("xkd_core", "pipelines", "ray_jobs", "conf", "pyproject.toml", "submitted.yaml")
        }
        assert not any(name.endswith(".pyc") for name in names)
        sizes = [size for _, size in package.largest(3)]
        assert sizes == sorted(sizes, reverse=True)
        # The upload knows its commit without its repository.
        told = subprocess.run(
            [sys.executable, "-c", "import ray_jobs.cli.main as m; m.main(['--version'])"],
            cwd=package.folder,
            env={"PATH": "/usr/bin", "PYTHONPATH": str(package.folder), **made.variables()},
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.strip() == code_version()
    assert made.variables()[CODE_VERSION] == code_version()
    assert not package.folder.exists()


def test_mistakes_in_settings_end_it_before_the_cluster_is_asked(capsys):
    for arguments, message in (
        (["pretrian", "smoke"], "no job 'pretrian'"),
        (["pretrain"], "xkd submit pretrain needs a configuration"),
        (["pretrain", "smoke", "epoch=3"], "did you mean epochs?"),
        (["pretrain", "smoke"], "--address http://HOST:8265 or RAY_API_SERVER_ADDRESS must name"),
        (["pretrain", "smoke", "--dry-run"], "--address http://HOST:8265"),
        (["stop", "a"], "--address http://HOST:8265"),
        (["stop"], "xkd submit stop needs the ID of one job"),
        (["logs", ""], "xkd submit logs needs the ID of one job"),
        (["list", "a"], "xkd submit list takes nothing after it"),
    ):
        assert main(["submit", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_an_address_without_a_job_server_is_named():
    port = unused_port()
    with pytest.raises(UserError, match=rf"\(http://127.0.0.1:{port}\) does not answer"):
        connected_client(f"http://127.0.0.1:{port}")
    for address in ("auto", "ray://host:10001", "http://", "http://host:port"):
        with pytest.raises(UserError, match="must be http://HOST:PORT of Ray's dashboard"):
            connected_client(address)


def test_a_stopped_job_has_time_for_a_checkpoint(monkeypatch):
    """Ray kills after 3 s what has not ended; it reads this variable in the job's environment."""
    assert int(submission("smoke").variables()["RAY_JOB_STOP_WAIT_TIME_S"]) >= 300
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "7")
    assert submission("smoke").variables()["RAY_JOB_STOP_WAIT_TIME_S"] == "7"


def test_each_job_of_the_cluster_is_one_line():
    jobs = [
        JobDetails(
            type=JobType.DRIVER,
            job_id=f"0{number}000000",
            status=JobStatus.RUNNING,
            entrypoint=command,
            start_time=number,
        )
        for number, command in enumerate(
            ["python -c '\nimport ray\n\nray.init()'", "xkd run smoke"]
        )
    ]
    client = SimpleNamespace(list_jobs=lambda: jobs)
    _, first, second = listed(client).splitlines()
    assert first.endswith("xkd run smoke")
    assert second.endswith("python -c ' import ray ray.init()'")


def test_a_password_does_not_travel(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000")
    with pytest.raises(UserError, match="must hold no password") as error:
        submission("smoke")
    assert "secret" not in str(error.value)


def test_packages_are_pinned_for_pip_and_uv():
    packages = pinned_packages()
    assert all("==" in package for package in packages), packages
    made = submission("smoke", environment="uv")
    assert made.runtime_env("/folder")["uv"] == packages
    assert made.runtime_env("/folder")["config"]["setup_timeout_seconds"] > 600
    assert "uv" not in submission("smoke").runtime_env("/folder")
    assert next(name for name in packages if name.startswith("ray[")).startswith("ray[data,")


def test_what_a_cluster_can_never_run_is_told(tmp_path):
    gpus = tiny_config(tmp_path, tmp_path / "clips", use_gpu=True, num_workers=2)
    head = [{"CPU": 2.0}]
    (now,) = resource_mistakes(gpus, head, None)
    assert "num_workers (2) needs 2 x 1 CPU and 2 x 1 GPU" in now
    assert resource_mistakes(gpus, head, {"CPU": 16, "GPU": 2}) == []
    assert resource_mistakes(gpus, head, {}) == []
    (never,) = resource_mistakes(gpus, head, {"CPU": 16, "GPU": 1})
    assert "its autoscaler adds at most 1 GPU of 2" in never
    late = tiny_config(
        tmp_path, tmp_path / "c", use_gpu=True, num_workers=2, ray={"wait_seconds": 60}
    )
    assert resource_mistakes(late, head, None) == []
    assert resource_mistakes(gpus, [{"CPU": 4.0, "GPU": 2.0}], None) == []


def test_the_probe_tells_why_a_place_is_out_of_reach(tmp_path, monkeypatch):
    marker = HOME_OF_CLUSTER

    def problem(place, is_written=False):
        return probe._problem({"place": str(place), "is_written": is_written}, marker)[0]

    assert problem(tmp_path) == ""
    assert problem(tmp_path / "none") == "does not exist on the cluster"
    assert problem(tmp_path / "none/below", is_written=True) == ""
    assert "XKD_HOME is set neither here nor" in problem(f"{marker}/runs")
    monkeypatch.setenv("XKD_HOME", str(tmp_path))
    (tmp_path / "runs").mkdir()
    assert problem(f"{marker}/runs") == ""
    port = unused_port()
    assert "cannot be reached from the cluster" in problem(f"http://127.0.0.1:{port}")
    assert problem(f"file://{tmp_path}/runs") == ""
    assert problem(f"file://{tmp_path}/new", is_written=True) == ""
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]
    assert problem(f"file://{tmp_path}/gone").startswith("does not exist")


def test_the_probe_writes_as_a_job_does(tmp_path):
    """Keys with spaces, umlauts and escapes are literal."""
    with serving(tmp_path) as server:

        def problem(place, is_written=False):
            asked = {"place": place, "is_written": is_written}
            return probe._problem(asked, HOME_OF_CLUSTER)

        uri = f"s3://{BUCKET}/my runs/100% \N{LATIN SMALL LETTER U WITH DIAERESIS}%20/"
        assert problem(uri, is_written=True) == ("", "")
        assert problem(f"{uri}none")[0].startswith("does not exist")
        assert server.names("my runs") == []
        checked = {"setting": "output", "place": "s3://gone/a", "is_written": True}
        (line,) = _place_mistakes([checked], [problem("s3://gone/a", is_written=True)])
        assert line.startswith(
            "output (s3://gone/a) cannot be written from the cluster: the bucket does not exist ("
        )
        server.read_only(True)
        (line,) = _place_mistakes([{**checked, "place": uri}], [problem(uri, is_written=True)])
        assert "from the cluster: the store does not allow it" in line
        assert "\n" not in line


def test_the_probe_needs_nothing_of_xkd():
    code = "import sys; exec(sys.stdin.read().split('if __name__')[0]); print(MARK, main)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], input=probe_code(), capture_output=True, text=True
    )
    assert "XKD-PROBE" in done.stdout, done.stderr
