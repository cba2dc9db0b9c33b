"""The commands of docker/README.md and docker/kuberay/README.md make what the files ask for."""

import re
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKER = REPOSITORY / "docker"
KUBERAY = DOCKER / "kuberay"
READMES = [DOCKER / "README.md", KUBERAY / "README.md"]


def values_of(node, key):
    """All values of a key anywhere in a document."""
    if isinstance(node, dict):
        yield from (value for name, value in node.items() if name == key)
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from values_of(child, key)


@pytest.fixture(scope="module")
def documents():
    return [yaml.safe_load(file.read_text()) for file in sorted(KUBERAY.glob("*.yaml"))]


def test_all_secrets_and_accounts_are_created(documents):
    readme = (KUBERAY / "README.md").read_text()
    created = dict(re.findall(r"create secret generic (\S+) (.*)", readme))
    asked = {
        (reference["name"], reference["key"]) for reference in values_of(documents, "secretKeyRef")
    }
    for kind in ("existingAdminSecret", "existingDatabaseSecret"):
        for secret in values_of(documents, kind):
            asked |= {(secret["name"], secret[key]) for key in ("usernameKey", "passwordKey")}
    assert len(asked) >= 4
    missing = {one for one in asked if f"--from-literal={one[1]}=" not in created.get(one[0], "")}
    assert missing == set()
    assert created.keys() == {name for name, _ in asked}
    accounts = set(values_of(documents, "serviceAccountName"))
    assert accounts == set(re.findall(r"create serviceaccount (\S+)", readme))


def test_the_token_and_the_service_are_those_of_the_cluster():
    readme = (KUBERAY / "README.md").read_text()
    name = yaml.safe_load((KUBERAY / "raycluster.yaml").read_text())["metadata"]["name"]
    assert f"get secret {name} -o" in readme
    assert f"service/{name}-head-svc 8265" in readme


@pytest.mark.parametrize("readme", READMES, ids=["docker", "kuberay"])
def test_files_that_commands_and_tables_name_exist(readme):
    text = readme.read_text()
    named = re.findall(r"(?:-f|--file) (\S+\.yaml|\S+Dockerfile)", text)
    assert named
    assert [file for file in named if not (REPOSITORY / file).exists()] == []
    beside = re.findall(r"^\| `([\w./-]+)`", text, re.MULTILINE)
    assert [file for file in beside if not (readme.parent / file).exists()] == []


def test_the_compose_file_asks_for_the_secrets_that_the_readme_makes():
    compose = (DOCKER / "compose.yaml").read_text()
    made = re.search(r"for name in ([^;]+);", READMES[0].read_text())[1]
    assert set(re.findall(r"\w+", made)) == set(re.findall(r"\$\{([A-Z_]+):\?", compose))


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_images_of_the_readme_are_stages(target):
    assert f"--target {target} " in READMES[0].read_text()
    assert re.search(rf"^FROM \S+ AS {target}$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
