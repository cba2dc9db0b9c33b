"""The files for KubeRay: against reduced schemas of its kinds, and what a run relies on in them."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ray_jobs.cli.configurations import configuration_names

jsonschema = pytest.importorskip("jsonschema")

REPOSITORY = Path(__file__).resolve().parents[2]
KUBERAY = REPOSITORY / "docker" / "kuberay"
KINDS = ("raycluster", "rayjob")


def load(name):
    return yaml.safe_load((KUBERAY / f"{name}.yaml").read_text())


def problems(name, values):
    schema = json.loads((KUBERAY / "schemas" / f"{name}.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    return [error.message for error in validator.iter_errors(values)]


def cluster_spec(name):
    spec = load(name)["spec"]
    return spec if name == "raycluster" else spec["rayClusterSpec"]


def pods(spec):
    return [spec["headGroupSpec"]["template"]["spec"]] + [
        group["template"]["spec"] for group in spec["workerGroupSpecs"]
    ]


@pytest.mark.parametrize("name", KINDS)
def test_files_fit_the_schemas(name):
    assert problems(name, load(name)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("workerGroupSpecs", 0, "minReplica"), 1),
        (("workerGroupSpecs", 0, "minReplicas"), "0"),
        (("headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("autoscalerOptions", "version"), "v3"),
        (("workerGroupSpecs", 0, "template", "spec", "containers"), []),
    ],
)
def test_the_schemas_find_mistakes(path, value):
    broken = copy.deepcopy(load("raycluster"))
    section = broken["spec"]
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    assert problems("raycluster", broken)


@pytest.mark.parametrize("name", KINDS)
def test_yamllint_finds_nothing(name):
    program = Path(sys.executable).with_name("yamllint")
    done = subprocess.run([program, "--strict", KUBERAY / f"{name}.yaml"], capture_output=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", KINDS)
def test_all_nodes_run_the_pinned_ray_with_a_token_and_a_bucket(name):
    spec = cluster_spec(name)
    pins = (REPOSITORY / "constraints.txt").read_text()
    assert spec["rayVersion"] == re.search(r"^ray==(\S+)", pins, re.M)[1]
    assert spec["authOptions"]["mode"] == "token"
    for pod in pods(spec):
        (container,) = pod["containers"]
        variables = {one["name"]: one for one in container["env"]}
        assert variables["XKD_HOME"]["value"].startswith("s3://")
        assert "valueFrom" in variables["MLFLOW_TRACKING_PASSWORD"]
        resources = container["resources"]
        assert resources["limits"]["memory"] == resources["requests"]["memory"]


@pytest.mark.parametrize("name", KINDS)
def test_workers_are_drained_within_their_grace(name):
    for group in cluster_spec(name)["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (command,) = [c["lifecycle"]["preStop"]["exec"]["command"] for c in pod["containers"]]
        # The login shell finds `ray`: see the Dockerfile.
        assert command[:2] == ["/bin/sh", "-lc"]
        seconds = int(re.search(r"--deadline-remaining-seconds (\d+)", command[2])[1])
        sleeps = int(re.search(r"sleep (\d+)", command[2])[1])
        assert 10 < seconds == sleeps < pod["terminationGracePeriodSeconds"] < 30
        assert "DRAIN_NODE_REASON_PREEMPTION" in command[2]


def test_the_cluster_grows_from_zero_and_the_job_waits_in_a_queue():
    spec = load("raycluster")["spec"]
    assert spec["enableInTreeAutoscaling"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert {group["minReplicas"] for group in spec["workerGroupSpecs"]} == {0}
    assert any("nvidia.com/gpu" in str(group) for group in spec["workerGroupSpecs"])
    job = load("rayjob")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert job["spec"]["suspend"]  # Kueue starts it
    assert job["spec"]["shutdownAfterJobFinishes"]  # Kueue asks for it
    _, name, configuration, *_ = job["spec"]["entrypoint"].split()
    assert configuration in configuration_names(name)


def test_the_image_has_what_kuberay_calls():
    runtime = (REPOSITORY / "docker" / "Dockerfile").read_text().split(" AS runtime")[1]
    assert '"wget=' in runtime
    assert "> /etc/profile.d/xkd.sh" in runtime


def test_mlflow_asks_for_the_password_that_jobs_have_and_migrates_its_own_database():
    values = load("mlflow-values")
    secret = values["auth"]["existingAdminSecret"]
    assert values["auth"]["enabled"]
    for kind in KINDS:
        (container,) = pods(cluster_spec(kind))[0]["containers"]
        asked = {one["name"]: one.get("valueFrom") for one in container["env"]}
        for variable, key in (("USERNAME", "usernameKey"), ("PASSWORD", "passwordKey")):
            reference = asked[f"MLFLOW_TRACKING_{variable}"]["secretKeyRef"]
            assert reference == {"name": secret["name"], "key": secret[key]}
    assert values["initImages"]["mlflowDbMigration"] == values["image"]
