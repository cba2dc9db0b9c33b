"""The images and the stand: linted, closed to the outside, without a password of their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = REPOSITORY / "docker" / "Dockerfile"
COMPOSE = REPOSITORY / "docker" / "compose.yaml"
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|KEY")
REQUIRED = re.compile(r"\$\{[A-Z_]+:\?[^}]+\}")


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load(COMPOSE.read_text())["services"]


@pytest.fixture(scope="module")
def stages():
    parts = re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.MULTILINE)[1:]
    return {part.split()[2]: part for part in parts}


def lint(tool, *arguments):
    program = Path(sys.executable).with_name(tool)
    assert program.exists(), f"{tool} is not installed: pip install -e .[dev]"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_nothing():
    lint("hadolint", str(DOCKERFILE))


def test_yamllint_finds_nothing():
    lint("yamllint", "--strict", str(COMPOSE))


def test_all_bases_are_pinned(stages, services):
    own = set(stages)
    bases = {part.split()[0] for part in stages.values()} - own
    assert bases == {"python:3.11-slim-bookworm"}
    foreign = [s["image"] for s in services.values() if "build" not in s]
    assert all(re.search(r":(\d+\.\d+|RELEASE\.\d{4}-)", image) for image in foreign)


def test_no_image_runs_as_root(stages, services):
    for name in ("runtime", "mlflow"):
        assert re.search(r"^USER 1000:1000$", stages[name], re.MULTILINE)
    for name in ("cpu", "gpu"):
        assert stages[name].startswith("runtime AS")
        assert "USER" not in stages[name]
    targets = {s["build"]["target"] for s in services.values() if "build" in s}
    assert targets == {"cpu", "gpu", "mlflow"}
    assert all(s.get("user", "root") != "root" for s in services.values() if "build" not in s)


def test_ports_are_published_on_loopback_alone(services):
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "ports" not in services["database"]
    assert not any("network_mode" in service for service in services.values())


def test_every_secret_must_be_given(services):
    secrets = {
        (name, variable): value
        for name, service in services.items()
        for variable, value in service["environment"].items()
        if SECRET.search(variable)
    }
    assert len(secrets) >= 8
    assert all(REQUIRED.fullmatch(value) for value in secrets.values()), secrets
    address = services["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert REQUIRED.fullmatch(address.partition("://mlflow:")[2].partition("@")[0])
    assert not re.search(r"\$\{[A-Z_]+:-", COMPOSE.read_text())


def test_every_ray_node_asks_for_the_token(services):
    for name in ("head", "worker", "gpu-worker"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"


def test_mlflow_asks_for_a_login_and_answers_to_its_own_name(services, stages):
    assert "--app-name=basic-auth" in stages["mlflow"]
    assert "mlflow:5000" in services["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]


def test_the_server_has_the_clients_mlflow(stages):
    constraints = (REPOSITORY / "constraints.txt").read_text()
    client = re.search(r"^mlflow==(\S+)", constraints, re.MULTILINE)[1]
    assert f'"mlflow[auth]=={client}"' in stages["mlflow"]


def test_what_the_dockerfile_copies_is_let_into_the_build():
    let_in = {
        line[1:]
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert names == let_in
    assert all((REPOSITORY / name).exists() for name in names)
