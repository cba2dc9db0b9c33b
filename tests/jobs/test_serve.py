"""`xkd serve`: the embedding of the pulled model over HTTP, and one line for what is refused."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import mlflow
import numpy as np
import pytest
import requests

from pipelines.config.serve import ServeConfig
from pipelines.paths import PACKAGES
from ray_jobs.cli.main import main
from tests.helpers.encoders import registered_encoder, write_media

TOKEN = {"Authorization": "Bearer open sesame"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A registry with a video encoder."""
    yield registered_encoder(tmp_path_factory.mktemp("home"))
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def service(registry, tmp_path_factory):
    """The address of a service with a token, and the folder that it may read."""
    pytest.importorskip("grpc_reflection", reason="ray[serve] is not installed: xkd[serve]")
    pytest.importorskip("python_multipart", reason="not installed: xkd[serve]")
    folder = tmp_path_factory.mktemp("media")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [f"port={port}", f"tracking.uri={registry.uri}", "ray.num_cpus=2"]
    settings += [f"uris=['{folder}']", "max_upload_bytes=1000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.serve", "xkd-video@champion", *settings],
        cwd=PACKAGES,
        env={**os.environ, "XKD_SERVE_TOKEN": "open sesame", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = []
        while line := process.stdout.readline():
            lines.append(line)
            if "Ctrl-C" in line:
                break
        else:
            pytest.fail(process.communicate()[1])
        yield f"http://127.0.0.1:{port}", folder, lines
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert "serve: stopped" in output
    finally:
        process.kill()
        process.wait()


def upload(address, content, headers=TOKEN):
    url = f"{address}/v1/embeddings/file"
    return requests.post(url, files={"file": content}, headers=headers, timeout=60)


def ask(address, body, headers=TOKEN):
    return requests.post(f"{address}/v1/embeddings/uri", json=body, headers=headers, timeout=60)


@pytest.mark.ray
def test_an_upload_and_a_uri_give_the_embedding_of_the_pulled_model(service, registry):
    address, folder, lines = service
    film = write_media(folder / "film.mkv", seconds=7.0)
    mlflow.set_tracking_uri(registry.uri)
    model = mlflow.pyfunc.load_model("models:/xkd-video@champion")
    expected = model.predict({"path": [str(film)]})[0]
    for answer in (upload(address, film.read_bytes()), ask(address, {"uri": str(film)})):
        assert answer.status_code == 200, answer.text
        values = answer.json()
        np.testing.assert_allclose(values["embedding"], expected, atol=1e-5)
        assert values["model"] == "models:/xkd-video/1"
        assert values["num_segments"] == 5
    assert lines[0] == "serve: starting 1 replica of models:/xkd-video@champion\n"
    assert address in lines[1]


@pytest.mark.ray
def test_requests_at_a_time_share_batches_and_keep_their_own_embeddings(service, registry):
    address, folder, _ = service
    films = [
        write_media(folder / f"{seed}.mkv", seconds=1.25 + 1.5 * (seed % 3), seed=seed)
        for seed in range(6)
    ]
    mlflow.set_tracking_uri(registry.uri)
    model = mlflow.pyfunc.load_model("models:/xkd-video@champion")
    expected = model.predict({"path": [str(film) for film in films]})
    with ThreadPoolExecutor(len(films)) as pool:
        answers = list(pool.map(lambda film: upload(address, film.read_bytes()), films))
    found = [answer.json()["embedding"] for answer in answers]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(np.unique(expected.round(3), axis=0)) == len(films)


@pytest.mark.ray
def test_what_is_refused_is_refused_in_one_line(service):
    address, folder, _ = service
    silent = write_media(folder / "silent.mkv", picture=False)
    cases = [
        (422, upload(address, b"\x1aE\xdf\xa3" + b"\0" * 5_000)),
        (422, upload(address, silent.read_bytes())),
        (422, upload(address, b"")),
        (422, ask(address, {"uri": 3})),
        (422, ask(address, {"uri": f"{folder}/absent.mkv"})),
        (403, ask(address, {"uri": "/etc/passwd"})),
        (403, ask(address, {"uri": "http://169.254.169.254/latest/meta-data"})),
        (413, upload(address, b"x" * 1_000_001)),
        (413, upload(address, b"x" * 2_000_000)),
        (401, upload(address, b"x", {})),
        (401, ask(address, {"uri": "x"}, {"Authorization": "Bearer wrong"})),
        (401, requests.get(f"{address}/metrics", timeout=60)),
    ]
    for status, answer in cases:
        assert answer.status_code == status, answer.text
        detail = answer.json()["detail"]
        assert "\n" not in detail
        assert ".py" not in detail
    assert "not_media" in cases[0][1].text
    assert "no picture" in cases[1][1].text


@pytest.mark.ray
def test_health_interface_and_metrics(service):
    address, folder, _ = service
    film = write_media(folder / "short.mkv", seconds=1.25)
    assert upload(address, film.read_bytes()).status_code == 200
    health = requests.get(f"{address}/health", timeout=60).json()
    assert health == {"status": "ok", "model": "models:/xkd-video/1"}
    interface = requests.get(f"{address}/openapi.json", timeout=60).json()
    assert {"/v1/embeddings/file", "/v1/embeddings/uri"} <= interface["paths"].keys()
    assert requests.get(f"{address}/docs", timeout=60).status_code == 200
    text = ""
    end = time.monotonic() + 60
    while "ray_xkd_segments_total{" not in text and time.monotonic() < end:
        text = requests.get(f"{address}/metrics", headers=TOKEN, timeout=60).text
        time.sleep(0.5)
    assert "ray_xkd_segments_total{" in text
    assert 'status="200"' in text


def test_other_addresses_need_a_token(monkeypatch):
    pytest.importorskip("grpc_reflection", reason="ray[serve] is not installed: xkd[serve]")
    pytest.importorskip("python_multipart", reason="not installed: xkd[serve]")
    monkeypatch.delenv("XKD_SERVE_TOKEN", raising=False)
    with pytest.raises(ValueError, match=r"host \(0.0.0.0\) can be reached by others: put a token"):
        ServeConfig(model="a@b", host="0.0.0.0")
    monkeypatch.setenv("XKD_SERVE_TOKEN", "x")
    assert ServeConfig(model="a@b", host="0.0.0.0").uri == "models:/a@b"


def test_a_mistake_is_said_before_anything_starts(registry, capsys):
    pytest.importorskip("grpc_reflection", reason="ray[serve] is not installed: xkd[serve]")
    pytest.importorskip("python_multipart", reason="not installed: xkd[serve]")
    uri = f"tracking.uri={registry.uri}"
    assert main(["serve", "xkd-video@nobody", uri]) == 2
    assert "xkd-video has no alias nobody" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "xkd-video@champion", uri, f"port={port}"]) == 2
    assert f"port ({port}) cannot be used" in capsys.readouterr().err
    settings = ["num_gpus=1000", "ray.num_cpus=2", "port=8765"]
    assert main(["serve", "xkd-video@champion", uri, *settings]) == 2
    assert "room for 0 replicas on 2 CPUs" in capsys.readouterr().err
