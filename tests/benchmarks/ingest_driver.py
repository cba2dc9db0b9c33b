"""How many sources does the driver of an ingest handle a second, and how much memory do they take?

    python tests/benchmarks/ingest_driver.py [sources=100000] [workers=2] [nodes=0]

Logical sources: no file is there. Their units go through the real Ray Data graph to actors that
decode nothing, write an empty file as the shard of each unit (a unit without one is run again), and
only yield the outcome of each source. So what is measured is the graph, the reports and the
progress. Planning is measured by `plan_list.py`. The workers are processes of one Ray, or of so
many nodes of a cluster, each a raylet on this machine. Of Ray's agents, which take 130 MB a node,
nodes get none but share the head's; so 200 nodes fit in 24 GiB, with 80 workers or so.
"""

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

from program import environment, most_memory, options
from ray._private import services
from ray.cluster_utils import Cluster

from pipelines.config.base import RaySettings
from pipelines.config.ingest import IngestSettings
from pipelines.ingest.plan import make_plan
from pipelines.ingest.unit import Unit
from pipelines.ingest.unit_graph import run_units
from pipelines.ingest.unit_runner import UnitOutcome
from pipelines.ingest.unit_shards import StoredUnits
from pipelines.sources.source import Fingerprint, Source, SourceList
from ray_jobs.cli.cluster import connected, without_dashboard

QUIET = {
    "RAY_debug_dump_period_milliseconds": "0",
    "RAY_event_stats": "0",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "10000",
    "RAY_health_check_period_ms": "30000",
    "RAY_io_context_event_loop_lag_collection_interval_ms": "0",
    "RAY_io_context_monitor_probe_interval_ms": "10000",
    "RAY_kill_idle_workers_interval_ms": "10000",
    "RAY_local_fs_monitor_interval_ms": "60000",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_object_manager_timer_freq_ms": "2000",
    "RAY_raylet_check_for_unexpected_worker_disconnect_interval_ms": "10000",
    "RAY_raylet_check_gc_period_milliseconds": "5000",
}
"""What a raylet does again and again takes 1 % of a CPU, so 200 on one machine would take two."""
DEFAULTS = {"sources": "100000", "workers": "2", "nodes": "0"}


class NoDecoder:
    """A worker that yields an outcome for each source and does nothing else."""

    def __init__(self, shards: str) -> None:
        self._shards = Path(shards)

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Reads the unit and yields its outcomes."""
        unit = Unit.from_json(row["unit"])
        for _ in unit.sources:
            yield asdict(UnitOutcome(unit.name, clips=1, seconds=5.0))
        shard = self._shards / f"{unit.name}.parquet"
        shard.parent.mkdir(parents=True, exist_ok=True)
        shard.touch()


def main() -> None:
    """Prints a line, and one JSON line last."""
    given = options(DEFAULTS)
    num_workers = int(given["workers"])
    begun = time.monotonic()
    units = plan(int(given["sources"]))
    num_units, planning = len(units), time.monotonic() - begun
    with (
        tempfile.TemporaryDirectory() as temporary,
        ray_of(int(given["nodes"]), num_workers) as settings,
        connected(settings),
    ):
        before = most_memory()
        folder = Path(temporary)
        progress = run_units(
            taken(units),
            NoDecoder,
            (str(folder / "clips"),),
            num_workers=num_workers,
            output=folder,
            rows_folder="clips",
            scratch=folder,
        )
        first = next(progress)
        begun = time.monotonic()
        *_, last = progress
        seconds = time.monotonic() - begun
    assert last.sources == int(given["sources"])
    results = {
        "units": num_units,
        "plan_seconds": planning,
        "sources_per_second": (last.sources - first.sources) / seconds,
        "peak_megabytes": most_memory() / 1e6,
        "megabytes_of_the_graph": (most_memory() - before) / 1e6,
    }
    print("  ".join(f"{name} {value:,.0f}" for name, value in results.items()))
    line = {"benchmark": "ingest_driver", **environment("ray", "pyarrow")}
    print(json.dumps(line | {"settings": given, "results": results}))


@contextmanager
def ray_of(num_nodes: int, num_workers: int) -> Iterator[RaySettings]:
    """Yields settings of a Ray of its own, or of a cluster of so many nodes besides a head."""
    if not num_nodes:
        yield RaySettings(address="local", num_cpus=num_workers)
        return
    os.environ.update(QUIET)
    node: dict[str, Any] = {"object_store_memory": 80_000_000}
    head = {**node, "num_cpus": 0, **without_dashboard()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        with raylets_alone(cluster):
            for _ in range(num_nodes):
                cluster.add_node(**node, num_cpus=-(-num_workers // num_nodes))
        yield RaySettings(address=cluster.address)
    finally:
        cluster.shutdown()


@contextmanager
def raylets_alone(cluster: Cluster) -> Iterator[None]:
    """Gives new nodes the runtime environments of the head's agent, and no agents of their own."""
    head = cluster.head_node
    assert head is not None
    start, folder = services.start_ray_process, Path(head.get_session_dir_path())
    # A raylet waits for these files of its agents; -1 is a service that the node has not.
    ports = dict.fromkeys(("dashboard_agent_listen", "metrics_agent", "metrics_export"), "-1")
    name = "runtime_env_agent"
    ports[name] = (folder / f"{name}_port_{head.node_id}").read_text()

    def start_alone(command: list[str], *args: Any, **settings: Any) -> Any:
        if node := re.search(r"--node-id=(\w+)", " ".join(command)):
            for name, port in ports.items():
                (folder / f"{name}_port_{node[1]}").write_text(port)
        alone = [re.sub(r"(?<=_agent_command=).*", "sleep infinity", part) for part in command]
        return start(alone, *args, **settings)

    with patch.object(services, "start_ray_process", start_alone):
        yield


def taken(units: list[Unit]) -> Iterator[dict[str, str]]:
    """Yields units as ingest does, and frees them."""
    units.reverse()
    while units:
        unit = units.pop()
        yield {"name": unit.name, "unit": unit.to_json()}


def plan(num_sources: int) -> list[Unit]:
    """Plans sources that are not there."""
    paths = [f"/videos/{n % 1000:03}/{n:012}.mp4" for n in range(num_sources)]
    sources = [Source(path, path, "label", "train", None) for path in paths]
    hashes = [hashlib.sha256(path.encode()).hexdigest() for path in paths]
    fingerprints = [Fingerprint(name, byte_size=2_000_000) for name in hashes]
    return make_plan(
        SourceList("/videos", sources), fingerprints, StoredUnits(), IngestSettings()
    ).units


if __name__ == "__main__":
    main()
