"""Waiting for nodes that a cluster does not have yet, and nodes that are about to leave."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines import nodes
from pipelines.errors import UserError
from pipelines.ingest.unit_graph import run_units
from pipelines.ingest.unit_runner import UnitOutcome
from pipelines.nodes import draining_nodes, wait_for_nodes, watched_nodes, working_nodes
from pipelines.progress import ignore_progress, watched_board
from ray_jobs.cli.cluster import without_dashboard
from tests.cluster.autoscaler import AUTOSCALER
from tests.helpers.drains import drain
from tests.helpers.training import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
UNIT_SECONDS = 1.0
ASK = """
import logging, sys, time
import ray
from pipelines.autoscaler import autoscaler_limits
from pipelines.nodes import has_autoscaler
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
end = time.monotonic() + 60
while not has_autoscaler() and time.monotonic() < end:  # Ray's monitor begins after the head
    time.sleep(0.2)
print("LIMITS", autoscaler_limits(), has_autoscaler())
"""


class Slow:
    """Takes a while for a unit, and writes down where each was begun."""

    def __init__(self, output):
        self._output = Path(output)

    def __call__(self, unit):
        node = ray.get_runtime_context().get_node_id()
        with (self._output / "begun").open("a") as begun:
            begun.write(f"{unit['name']} {node}\n")
        time.sleep(UNIT_SECONDS)
        (self._output / "clips" / f"{unit['name']}.parquet").touch()
        yield asdict(UnitOutcome(unit["name"], clips=1))


@pytest.fixture(scope="module")
def cluster():
    head = {**NODE, "num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def _node(*_):
    return ray.get_runtime_context().get_node_id()


def one_cpu(there):
    if not any(node.get("CPU", 0.0) >= 1 for node in there):
        raise UserError("no CPU")
    return len(there)


def too_many(_):
    raise UserError("no CPU")


def test_a_job_says_what_it_waits_for_and_goes_on_with_the_first_node(cluster, caplog):
    with pytest.raises(UserError, match=r"^no CPU$"):
        wait_for_nodes(one_cpu, [{"CPU": 1}], None)
    with pytest.raises(UserError, match=r"no CPU; waited 1 s \(ray.wait_seconds\)"):
        wait_for_nodes(one_cpu, [{"CPU": 1}], 1.0)
    caplog.clear()
    demands = []

    found = []
    thread = threading.Thread(
        target=lambda: found.append(wait_for_nodes(one_cpu, [{"CPU": 1}], 60.0))
    )
    with caplog.at_level(logging.WARNING):
        thread.start()
        time.sleep(1.5)
        demands.extend(placement_group_table().values())
        cluster.add_node(**NODE)
        thread.join()
    assert found == [2]
    assert "no CPU; waiting for nodes, " in caplog.text
    # What an autoscaler sees while the job waits, and not after.
    assert [demand["bundles"] for demand in demands if demand["state"] == "PENDING"] == [
        {0: {"CPU": 1.0}}
    ]
    states = {group["state"] for group in placement_group_table().values()}
    assert states == {"REMOVED"}


def test_a_job_without_any_node_left_says_so_until_one_joins(cluster, caplog, monkeypatch):
    monkeypatch.setattr(nodes, "_WATCH_SECONDS", 0.1)
    monkeypatch.setattr(nodes, "_REMIND_SECONDS", 0.5)
    line = "no node of Ray has a CPU for tasks; waiting for nodes"
    wait_for_nodes(one_cpu, [{"CPU": 1}], 60.0)
    # By default, for a node in place of the lost one, though there is no autoscaler.
    waiting = threading.Thread(target=wait_for_nodes, args=(one_cpu, [{"CPU": 1}], None))
    with caplog.at_level(logging.WARNING), watched_nodes():
        for node in cluster.worker_nodes.copy():
            cluster.remove_node(node, allow_graceful=True)
        wait_until(lambda: caplog.text.count(line) >= 2, 60)
        wait_until(lambda: "is gone; 1 node now" in caplog.text, 60)
        waiting.start()
        wait_until(lambda: "no CPU; waiting for nodes, 10 min 00 s left" in caplog.text, 60)
        cluster.add_node(**NODE)
        waiting.join()
        wait_until(lambda: "has joined; 2 nodes now" in caplog.text, 60)
        time.sleep(0.3)
        told = caplog.text.count(line)
        time.sleep(1.0)
        assert caplog.text.count(line) == told
    with pytest.raises(UserError, match=r"^no CPU$"):
        wait_for_nodes(too_many, [{"CPU": 1}], None)


def test_an_autoscaler_is_waited_for_though_it_does_not_say_how_far_it_goes(tmp_path):
    """The first version of Ray's tells no limits; `cluster` has none, and is not waited for."""
    config = tmp_path / "autoscaler.json"
    config.write_text(json.dumps(AUTOSCALER))
    port = without_dashboard()["dashboard_port"]
    environment = os.environ | {"RAY_FAKE_CLUSTER": "1", "RAY_AUTH_MODE": "disabled"}
    ray_start = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    ray_start += [f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    ray_start += ["--object-store-memory=80000000", f"--autoscaling-config={config}"]
    head = subprocess.Popen(ray_start, env=environment, stdout=subprocess.DEVNULL)
    try:
        asked = [sys.executable, "-c", ASK, f"{ray.util.get_node_ip_address()}:{port}"]
        done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout.splitlines()[-1:] == ["LIMITS {} True"], done.stderr
    finally:
        head.terminate()
        head.wait(30)


def test_boards_are_on_the_node_of_their_reader(cluster):
    """Other nodes of the job may go, and would take progress and warnings with them."""
    wait_for_nodes(one_cpu, [{"CPU": 1}], 60.0)
    with ExitStack() as stack:
        boards = [stack.enter_context(watched_board(ignore_progress)) for _ in range(5)]
        nodes_of_boards = ray.get([board.__ray_call__.remote(_node) for board in boards])
    assert set(nodes_of_boards) == {_node()}


@pytest.mark.slow
def test_units_move_to_nodes_that_join_and_away_from_nodes_that_go(cluster, tmp_path, caplog):
    """A node joins, then one is killed: only what it had in flight is done again."""
    (tmp_path / "clips").mkdir()
    units = [{"name": f"unit{number:02}", "sources": 1} for number in range(24)]
    first = wait_for_nodes(one_cpu, [{"CPU": 1}], 60.0)
    added = cluster.add_node(**NODE)
    begun = tmp_path / "begun"
    late = []
    with closing(
        run_units(
            units,
            Slow,
            (str(tmp_path),),
            num_workers=None,
            output=tmp_path,
            rows_folder="clips",
            scratch=tmp_path,
        )
    ) as progress:
        for done in progress:
            if done.sources >= 2 and not late:
                late.append(cluster.add_node(**NODE))
            if done.sources >= 6 and added is not None:
                cluster.remove_node(added, allow_graceful=False)
                added = None
    assert first
    assert added is None
    assert len(list((tmp_path / "clips").iterdir())) == len(units)
    lines = [line.split() for line in begun.read_text().splitlines()]
    again = len(lines) - len({name for name, _ in lines})
    assert again <= 2  # one in flight, and one that its task had begun with it
    assert late[0].node_id in {node for _, node in lines}
    assert "Traceback" not in caplog.text


def test_a_node_that_is_about_to_leave_does_not_count(cluster, tmp_path):
    node = cluster.add_node(**NODE)
    before = {node["NodeID"] for node in working_nodes()}
    assert node.node_id in before
    # An idle node would leave at once.
    there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    started = tmp_path / "started"

    def work():
        started.touch()
        time.sleep(60)

    working = ray.remote(work).options(scheduling_strategy=there).remote()
    wait_until(started.exists, 60)
    drain(cluster, node.node_id, seconds=60)
    assert draining_nodes() == [node.node_id]
    assert {node["NodeID"] for node in working_nodes()} == before - {node.node_id}
    ray.cancel(working, force=True)
    assert {node["NodeID"] for node in working_nodes(list(before))} == set()
