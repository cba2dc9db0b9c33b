"""A folder that not every node sees is found before any work, and the message names the node."""

import os
import shutil
import subprocess
import sys
import time

import pytest
import ray
from ray.cluster_utils import Cluster

from pipelines.errors import UserError
from pipelines.shared import check_shared

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster():
    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def blind_node(cluster, tmp_path):
    """A node in a mount namespace of its own, where another disk hides `tmp_path/hidden`."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("mount namespaces need root and unshare")
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here")
    ray_program = os.path.join(os.path.dirname(sys.executable), "ray")
    start = (
        f"mount -t tmpfs none {hidden} && exec {ray_program} start --block "
        f"--address={cluster.address} --num-cpus=1 --object-store-memory=80000000"
    )
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", start],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    _wait_for_nodes(2)
    yield hidden
    process.terminate()
    process.wait(30)


def _wait_for_nodes(count):
    until = time.monotonic() + 90
    while sum(node["Alive"] for node in ray.nodes()) < count:
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_folder_that_a_node_does_not_see_is_refused(cluster, blind_node, tmp_path):
    check_shared(str(tmp_path / "seen"), "s3://bucket/folder")
    message = r"hidden/runs\) must be shared: node \S+ \([\d.]+\) does not see"
    with pytest.raises(UserError, match=message):
        check_shared(str(tmp_path / "seen"), str(blind_node / "runs"))
    assert list(tmp_path.rglob("*.tmp")) == []
