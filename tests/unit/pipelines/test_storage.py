"""What a store refuses, or that it is away, is one line within seconds."""

import signal
import time

import pytest

from pipelines import filesystems
from pipelines.config.promote import PromoteConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import UserError
from pipelines.evaluation.cache import _read_arrays
from pipelines.files import check_writable
from pipelines.ingest.state import read_state
from pipelines.models.checkpoints import find_checkpoint
from pipelines.registry.promote import checkpoint_outcomes, checkpoint_scores
from pipelines.storage import path_of
from ray_jobs.cli.main import main
from tests.helpers.bucket import BUCKET, serving
from tests.helpers.training import unused_port


@pytest.fixture
def server(tmp_path):
    with serving(tmp_path) as server:
        yield server


@pytest.fixture(autouse=True)
def no_memory():
    before = signal.getsignal(signal.SIGTERM)  # a job in this process handles it
    yield
    signal.signal(signal.SIGTERM, before)
    for opened in (filesystems._s3, filesystems._gcs, filesystems._azure):
        opened.cache_clear()
    filesystems._away.clear()


@pytest.mark.parametrize(
    ("request_kind", "message"),
    [
        ("LIST", "cannot be listed: the store does not allow it"),
        ("DELETE", "does not let files be deleted: the store does not allow it"),
        ("PUT", "is not writable: the store does not allow it"),
    ],
)
def test_a_permission_that_is_missing_is_named(server, request_kind, message):
    server.forbidding(request_kind)
    with pytest.raises(UserError, match=rf"^output \(s3://{BUCKET}/a b\) {message}"):
        check_writable(f"s3://{BUCKET}/a b/")


@pytest.mark.parametrize("code", ["PermanentRedirect", "AuthorizationHeaderMalformed"])
def test_a_wrong_region_is_named(server, code):
    server.refusing(code)
    with pytest.raises(UserError, match="the bucket is in another region than AWS_REGION says"):
        check_writable(f"s3://{BUCKET}/a")


def test_google_without_credentials_is_named_soon(monkeypatch):
    """By default its client asks the server of credentials for a quarter of an hour."""
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{unused_port()}")
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setattr(filesystems, "_FIRST_SECONDS", 1)
    begun = time.monotonic()
    for _ in range(3):  # several checks do not all wait
        with pytest.raises(UserError, match=r"\(gs://bucket\) cannot be opened: Google's client"):
            check_writable("gs://bucket/a")
    assert time.monotonic() - begun < 60  # not a measure: it would be 900


@pytest.mark.parametrize(
    ("location", "variables", "message"),
    [
        (
            "gs://bucket/a",
            {"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/key.json"},
            "Google's client finds no credentials: set GOOGLE_APPLICATION_CREDENTIALS",
        ),
        ("abfs://container/a", {}, "set AZURE_STORAGE_ACCOUNT_NAME"),
        (
            "abfs://container/a",
            {"AZURE_STORAGE_ACCOUNT_NAME": "xkd", "AZURE_STORAGE_KEY": "no base 64"},
            "",
        ),
    ],
)
def test_wrong_credentials_are_one_line(location, variables, message, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    store = location.removesuffix("/a")
    for ask in (
        check_writable,
        ClipDataset.open,
        lambda location: path_of(location).exists(),
        lambda location: read_state(path_of(location), "be empty"),
    ):
        with pytest.raises(UserError) as error:
            ask(location)
        assert str(error.value).startswith(f"location ({store}) cannot be opened: {message}")
        assert "\n" not in str(error.value)


def test_a_store_that_is_away_is_one_line_and_no_damage(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(filesystems, "_FIRST_ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "a.mp4").write_text("no media")
    home = "s3://bucket/home"
    monkeypatch.setenv("XKD_HOME", home)
    for job in (("ingest", "smoke"), ("run", "smoke")):
        assert main([*job, f"input={tmp_path}", "--dry-run"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "location (s3://bucket) cannot be opened: the store does not answer" in line


def test_a_dry_run_shows_the_mistakes_of_mlflow(monkeypatch, capsys):
    monkeypatch.setenv("XKD_HOME", "memory://home")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["ingest", "smoke", "--dry-run"]) == 2
    assert "set MLFLOW_TRACKING_URI=http://HOST:5000" in capsys.readouterr().err


def test_a_store_that_refuses_is_no_damage(server):
    """Else somebody deletes what is as it should be, or a training begins anew."""
    home = f"s3://{BUCKET}/a"
    for name in ("cache/shard.npz", "scores.json", "outcomes.npz", "step/training.json"):
        path_of(f"{home}/{name}").write_bytes(b"{}")
    promotion = PromoteConfig(checkpoint=f"{home}/step", scores=f"{home}/scores.json")
    server.refusing("AccessDenied")
    for read in (
        lambda: _read_arrays(path_of(f"{home}/cache/shard.npz")),
        lambda: checkpoint_scores(promotion),
        lambda: checkpoint_outcomes(promotion),
        lambda: find_checkpoint(f"{home}/step"),
        lambda: read_state(path_of(home), "be empty"),
        lambda: ClipDataset.open(home),
    ):
        with pytest.raises((UserError, OSError), match=r"ACCESS_DENIED|does not allow") as error:
            read()
        assert "damaged" not in str(error.value)
        assert "must be" not in str(error.value)
