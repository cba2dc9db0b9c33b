"""Whatever is killed and whenever: the dataset becomes what an uninterrupted run makes of it.

The rows are compared one by one, with the shards that they are in.
Clusters outlive killed drivers, so their workers go on for a while beside those of
the next driver.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

from pipelines.config.ingest import IngestSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.ingest.ingest import ingest
from pipelines.media.decoder.template import MODULE as DECODER
from tests.helpers.clip_datasets import index_of
from tests.helpers.media import write_media, write_numbered

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]
SETTINGS = IngestSettings(
    short_side=96, segment_seconds=2.0, sources_per_shard=3, rows_per_group=2, num_workers=3
)
NUM_KILLS = 20
DRIVER = """
import sys
import ray
from pipelines.config.ingest import IngestSettings
from pipelines.ingest.ingest import ingest
address, videos, output, settings = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
settings = IngestSettings.model_validate_json(settings)
ingest(videos, output, settings, on_progress=lambda *_: None)
"""


@pytest.fixture(scope="module")
def cluster():
    os.environ["XKD_TEST_CLUSTER"] = str(os.getpid())  # inherited by all its processes
    node = {"object_store_memory": 80_000_000}
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "num_cpus": 2, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=2, **node)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    del os.environ["XKD_TEST_CLUSTER"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """30 good files whose decoding takes some seconds, and some of each kind that is rejected."""
    folder = tmp_path_factory.mktemp("videos")
    generator = np.random.default_rng(0)
    for number in range(30):
        noise = generator.integers(0, 255, (120, 160, 3), np.uint8)
        frames = [np.roll(noise, (i, 2 * i), (0, 1)) for i in range(60 + 10 * (number % 7))]
        write_media(folder / f"{number}.mp4", frames)
    for number in range(4):
        shutil.copy(folder / f"{number}.mp4", folder / f"copy{number}.mp4")
        write_numbered(folder / f"short{number}.mkv", 3 + number)
        (folder / f"text{number}.mp4").write_text(f"no media {number}")
        (folder / f"gone{number}.mp4").symlink_to("nowhere")
    return folder


@pytest.fixture(scope="module")
def expected(cluster, videos, tmp_path_factory):
    """The rows of an uninterrupted run, and how long it takes."""
    output = tmp_path_factory.mktemp("expected") / "clips"
    begin = time.monotonic()
    ingest(str(videos), str(output), SETTINGS, on_progress=lambda *_: None)
    return rows_of(output), time.monotonic() - begin


def rows_of(output):
    clips, rejects = [], []
    for part, rows in (("clips", clips), ("rejects", rejects)):
        for file in sorted((output / part).glob("*.parquet")):
            rows += [{"file": file.name, **row} for row in pq.read_table(file).to_pylist()]
    return (
        sorted(clips, key=lambda row: row["clip_id"]),
        sorted(rejects, key=lambda row: row["source"]),
    )


def check(output, expected):
    assert rows_of(output) == expected
    assert sorted(entry.name for entry in (output / ".ingest").iterdir()) == [
        "fingerprints.parquet",
        "lock",
        "settings.json",
    ]
    assert sorted(entry.name for entry in output.iterdir()) == [
        ".ingest",
        "clips",
        "index.arrow",
        "manifest.json",
        "rejects",
    ]
    assert all(file.suffix == ".parquet" for part in "cr" for file in output.glob(f"{part}*/*"))
    assert not list(output.glob("*/.*.tmp"))
    index = index_of(output)
    assert (
        index.clip_id.tolist()
        == ClipDataset.open(output).small_columns(["clip_id"])["clip_id"].to_pylist()
    )


def test_drivers_killed_at_random_moments(cluster, videos, expected, tmp_path):
    rows, seconds = expected
    generator = random.Random(0)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    num_kills, outputs = 0, [tmp_path / "0"]
    while num_kills < NUM_KILLS:
        output = outputs[-1]
        arguments = [cluster.address, str(videos), str(output), SETTINGS.model_dump_json()]
        with subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as driver:
            before = set(output.glob(".ingest/run-*"))
            while driver.poll() is None and set(output.glob(".ingest/run-*")) <= before:
                time.sleep(0.02)
            time.sleep(generator.uniform(0.0, seconds))
            if driver.poll() is None:
                driver.send_signal(signal.SIGKILL)
                num_kills += 1
            else:
                assert driver.returncode == 0
                check(output, rows)
                outputs.append(tmp_path / f"{len(outputs)}")
    ingest(str(videos), str(outputs[-1]), SETTINGS, on_progress=lambda *_: None)
    check(outputs[-1], rows)


def processes(name):
    found = []
    for process in psutil.process_iter():
        try:
            if name in " ".join(process.cmdline()) and is_of_cluster(process):
                found.append(process)
        except psutil.Error:
            continue
    return found


def is_of_cluster(process):
    """Whether a worker started it; decoders do not inherit the environment."""
    return any(
        each.environ().get("XKD_TEST_CLUSTER") == str(os.getpid())
        for each in (process, *process.parents())
        if each.pid > 1
    )


def test_workers_and_decoders_killed_at_random_moments(cluster, videos, expected, tmp_path):
    generator = random.Random(1)
    moments = sorted(generator.sample(range(2, 40), 8))
    killed = []

    def kill(done, total, note):
        if moments and done >= moments[0]:
            moments.pop(0)
            name = ("MapWorker(FlatMap(UnitRunner", DECODER)[len(killed) % 2]
            victims = processes(name)
            if victims:
                victim = generator.choice(victims)
                victim.kill()
                killed.append(name)

    ingest(str(videos), str(tmp_path / "clips"), SETTINGS, on_progress=kill)
    assert len(set(killed)) == 2
    check(tmp_path / "clips", expected[0])


def test_a_node_that_dies_in_the_middle(cluster, videos, expected, tmp_path):
    for moment in (3, 20):
        nodes = [cluster.add_node(num_cpus=2, object_store_memory=80_000_000)]

        def kill(done, total, note, moment=moment, nodes=nodes):
            if done >= moment and nodes:
                cluster.remove_node(nodes.pop(), allow_graceful=False)

        output = tmp_path / f"{moment}"
        ingest(str(videos), str(output), SETTINGS, on_progress=kill)
        assert not nodes
        check(output, expected[0])
