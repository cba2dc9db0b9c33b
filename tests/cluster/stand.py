"""A Ray cluster on machines that share nothing, with MLflow and a bucket on others."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs

from pipelines.media.decoder.template import MODULE as DECODER
from tests.cluster.autoscaler import AUTOSCALER
from tests.cluster.machines import HOST_ADDRESS, REPOSITORY, Machine, make_network, wait_until
from tests.cluster.tracking import start_mlflow
from tests.helpers.bucket import BUCKET

HOME = f"s3://{BUCKET}/home"
_BIN = Path(sys.executable).parent
_NUMBERS = {"store": 2, "mlflow": 3, "head": 10}
_FIRST_WORKER, _LAST_WORKER = 11, 30
_OBJECT_STORE = 150_000_000
_NODES = """
import json, ray
ray.init(address="auto", log_to_driver=False)
nodes = [[n["NodeManagerAddress"], n["NodeID"], n["Alive"]] for n in ray.nodes()]
print("NODES " + json.dumps(nodes))
"""


class Stand:
    """The running machines.

    Args:
        folder: Gets their disks and logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hosts = folder / "hosts"
        self._number = _FIRST_WORKER
        names = {**_NUMBERS, **{f"worker{n}": n for n in range(_FIRST_WORKER, _LAST_WORKER)}}
        lines = ["127.0.0.1 localhost", f"{HOST_ADDRESS} client"]
        lines += [f"{HOST_ADDRESS[:-1]}{number} {name}" for name, number in names.items()]
        self._hosts.write_text("\n".join(lines) + "\n")
        self.store = self._machine("store", 2)
        self.mlflow = self._machine("mlflow", 3)
        self.environment = {
            "PATH": f"{_BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "OMP_NUM_THREADS": "1",
            # Ray's own 15 would starve beside other programs of this machine.
            "RAY_worker_niceness": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "MLFLOW_TRACKING_URI": f"http://{self.mlflow.address}:5000",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "RAY_USAGE_STATS_ENABLED": "0",
            "AWS_ENDPOINT_URL": f"http://{self.store.address}:9000",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }
        os.environ |= self.environment
        self._control = self._folder / "store" / "tmp" / "control"
        self._control.write_text("")
        server = [sys.executable, str(REPOSITORY / "tests/helpers/bucket.py"), "/tmp/control"]
        # The server runs as long as its input is open.
        self.store.start(
            ["sh", "-c", 'sleep inf | "$@"', "-", *server, "0.0.0.0", "9000"], self.environment
        )
        self.environment |= start_mlflow(self.mlflow, self.environment)
        os.environ |= self.environment
        self.head: Machine
        self.workers: list[Machine] = []
        self.submissions: list[tuple[str, subprocess.Popen[bytes]]] = []
        """Name of the log, and the process that submits and follows."""

    def wait_for_servers(self) -> None:
        """Waits for the store and MLflow, and makes the bucket."""
        wait_until(lambda: _answers(f"http://{self.mlflow.address}:5000/health"), 180, "MLflow")
        wait_until(lambda: _answers(f"http://{self.store.address}:9000/"), 60, "the store")
        pafs.S3FileSystem(
            endpoint_override=self.environment["AWS_ENDPOINT_URL"],
            region="us-east-1",
            access_key="test",
            secret_key="test",
            allow_bucket_creation=True,
        ).create_dir(BUCKET)

    def start_head(self, *, is_autoscaled: bool = False) -> None:
        """Starts the machine of the head, which takes no tasks.

        Args:
            is_autoscaled: Whether an autoscaler starts nodes, as processes of this machine.
        """
        self.head = self._machine("head", 10)
        arguments = ["--head", "--port=6379", "--dashboard-host=0.0.0.0"]
        if is_autoscaled:
            config = self._folder / "head" / "tmp" / "autoscaler.json"
            config.write_text(json.dumps(AUTOSCALER))
            arguments.append("--autoscaling-config=/tmp/autoscaler.json")
        self._ray(self.head, *arguments, cpus=0)
        address = f"http://{self.head.address}:8265"
        wait_until(lambda: _answers(f"{address}/api/gcs_healthz"), 180, "the head")
        os.environ["RAY_API_SERVER_ADDRESS"] = address

    def add_worker(self, *, cpus: int = 1, slow: bool = False) -> Machine:
        """Starts a machine of its own that joins the head."""
        worker = self._machine(f"worker{self._number}", self._number, slow=slow)
        self._number += 1
        self._ray(worker, f"--address={self.head.address}:6379", cpus=cpus)
        self.workers.append(worker)
        return worker

    def _ray(self, machine: Machine, *arguments: str, cpus: int) -> None:
        command = [str(_BIN / "ray"), "start", "--block", *arguments, f"--num-cpus={cpus}"]
        command += [f"--node-ip-address={machine.address}"]
        command += [f"--object-store-memory={_OBJECT_STORE}"]
        machine.start(command, self.environment | {"PYTHONPATH": "", "RAY_FAKE_CLUSTER": "1"})

    def wait_for_workers(self) -> None:
        """Waits until all workers have joined."""
        here = {worker.address for worker in self.workers}
        wait_until(lambda: here <= self.node_ids().keys(), 240, "workers that join")

    def node_ids(self) -> dict[str, str]:
        """Returns the IDs of the nodes that are alive, by their addresses."""
        return dict(self._nodes())

    def num_nodes(self) -> int:
        """Returns the number of nodes that are alive."""
        return len(self._nodes())

    def _nodes(self) -> list[tuple[str, str]]:
        try:
            out = self.head.run([sys.executable, "-c", _NODES], self.environment)
        except subprocess.CalledProcessError:
            return []
        line = next(line for line in out.splitlines() if line.startswith("NODES "))
        return [(address, node) for address, node, alive in json.loads(line[6:]) if alive]

    def drain(self, machine: Machine, seconds: int) -> None:
        """Tells Ray that a machine is about to leave, as the hook of `docker/kuberay/` does."""
        command = [str(_BIN / "ray"), "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message", "pod deleted"]
        machine.run([*command, "--deadline-remaining-seconds", str(seconds)], self.environment)

    def training_machines(self) -> list[Machine]:
        """Returns the workers on which a training runs."""
        return [worker for worker in self.workers if worker.processes("RayTrainWorker")]

    def decoding_machines(self) -> list[Machine]:
        """Returns the workers on which media are decoded."""
        return [worker for worker in self.workers if worker.processes(DECODER)]

    def remove(self, machine: Machine) -> None:
        """Powers a machine off."""
        machine.power_off()
        if machine in self.workers:
            self.workers.remove(machine)

    def submit(self, job: str, *arguments: str, log: str) -> "subprocess.Popen[bytes]":
        """Starts `xkd submit` here, whose output goes to a log of that name."""
        command = [sys.executable, "-m", "ray_jobs.cli.main", "submit", "--home", HOME, job]
        with (self._folder / f"{log}.log").open("ab") as file:
            submitted = subprocess.Popen(
                [*command, *arguments],
                cwd=REPOSITORY,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        self.submissions.append((log, submitted))
        return submitted

    def machines(self) -> list[Machine]:
        """Returns the head and the workers."""
        return [self.head, *self.workers]

    def restart(self, num_workers: int) -> None:
        """Ends what runs, and starts a head and so many workers anew."""
        for _, submitted in self.submissions:
            submitted.kill()
            submitted.wait()
        for machine in self.machines():
            machine.power_off()
        self.workers.clear()
        self.start_head()
        for _ in range(num_workers):
            self.add_worker()
        self.wait_for_workers()

    def log(self, name: str) -> str:
        """Returns the output of a submission so far."""
        return (self._folder / f"{name}.log").read_text()

    def keep(self, folder: Path) -> None:
        """Copies the logs of machines, submissions and Ray to a folder."""
        ignored = shutil.ignore_patterns("*.tmp", "sockets", "runtime_resources", "artifacts")
        for file in (*self._folder.glob("*.log"), *self._folder.glob("*/log.txt")):
            target = folder / file.relative_to(self._folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
        for logs in self._folder.glob("*/tmp/ray/session_2*/logs"):
            target = folder / logs.relative_to(self._folder)
            shutil.copytree(logs, target, ignore=ignored, dirs_exist_ok=True)

    def close(self) -> None:
        """Ends all machines."""
        for machine in (*self.workers, getattr(self, "head", None), self.mlflow, self.store):
            if machine is not None:
                machine.power_off()

    def _machine(self, name: str, number: int, *, slow: bool = False) -> Machine:
        return Machine(name, number, self._folder, self._hosts, slow=slow)


@contextmanager
def running(folder: Path, num_workers: int) -> Iterator[Stand]:
    """Yields a stand with so many workers of one CPU; all of it ends with the block."""
    make_network()
    stand = Stand(folder)
    try:
        stand.wait_for_servers()
        begun = time.monotonic()
        stand.start_head()
        for _ in range(num_workers):
            stand.add_worker()
        stand.wait_for_workers()
        print(f"a head and {num_workers} workers after {time.monotonic() - begun:.0f} s")
        yield stand
    finally:
        stand.close()


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
