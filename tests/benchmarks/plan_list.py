"""What does it cost to plan an ingest of a list of a million paths?

    python tests/benchmarks/plan_list.py [NUM_PATHS]

Planning only: the list is read (CSV, JSONL, Parquet), hashes are made up as if the files had been
read, and the sources are spread over units and written as the rows that Ray Data gets. No file is
there and none is opened. Each step runs in a process of its own; memory is the peak of the process
beyond what it has when everything is imported.
"""

import csv
import hashlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from program import most_memory

from pipelines.config.ingest import IngestSettings
from pipelines.ingest.plan import make_plan
from pipelines.ingest.unit_shards import StoredUnits
from pipelines.sources.listing import list_sources
from pipelines.sources.source import Fingerprint, SourceList


def main() -> None:
    """Prints a table, and one JSON line last."""
    num_paths = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        lists = make_lists(Path(temporary), num_paths)
        steps = {f"read {path.suffix}": (read, path) for path in lists}
        steps |= {"read .csv and plan": (plan, lists[0])}
        print(f"{num_paths:,} paths           CPU-s  peak MB")
        for name, (step, path) in steps.items():
            context = multiprocessing.get_context("spawn")
            with context.Pool(1) as pool:
                seconds, megabytes = pool.apply(measured, (step, path))
            print(f"{name:24} {seconds:8.1f} {megabytes:8.0f}", flush=True)
            results[name] = {"cpu_seconds": seconds, "peak_megabytes": megabytes}
    line = {"benchmark": "plan_list", "num_paths": num_paths, "pyarrow": version("pyarrow")}
    print(json.dumps(line | {"python": sys.version.split()[0], "results": results}))


def make_lists(folder: Path, num_paths: int) -> list[Path]:
    """Writes the same made list in each form."""
    names = ["path", "label", "split", "group"]
    rows = [
        (f"videos/{number % 1000:03}/{number:012}.mp4", f"class {number % 400}", "train", "")
        for number in range(num_paths)
    ]
    with open(folder / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
    with open(folder / "list.jsonl", "w") as file:
        file.writelines(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "list.parquet")
    return [folder / "list.csv", folder / "list.jsonl", folder / "list.parquet"]


def measured(step: Callable[[Path], object], path: Path) -> tuple[float, float]:
    """CPU seconds and megabytes of a step."""
    before, started = most_memory(), time.process_time()
    kept = step(path)
    seconds = time.process_time() - started
    del kept
    return seconds, (most_memory() - before) / 1e6


def read(path: Path) -> SourceList:
    """Reads the list."""
    return list_sources(str(path), "none")


def plan(path: Path) -> list[str]:
    """Reads the list and plans all of it."""
    listed = read(path)
    fingerprints = [
        Fingerprint(hashlib.sha256(source.uri.encode()).hexdigest(), byte_size=2_000_000)
        for source in listed.sources
    ]
    units = make_plan(listed, fingerprints, StoredUnits(), IngestSettings()).units
    return [unit.to_json() for unit in units]


if __name__ == "__main__":
    main()
