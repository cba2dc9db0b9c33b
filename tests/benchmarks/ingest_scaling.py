"""How much faster is ingest on two cores than on one?

    python tests/benchmarks/ingest_scaling.py [clips=1024] [repeats=3]

The ingest of the job, on a Ray of its own, over made files of 10 s as those of `ingest_cost.py`. In
turns, each in a process of its own that is pinned before it starts, with all that it starts: on one
CPU and a Ray of one, on two and a Ray of two. So the driver and Ray's own processes take their time
from the same CPUs as the decoders.

Workers report about once a second how many sources are finished. The figure is taken from the
first report to the last, over the sources between them. What comes before is the start of Ray and
of the decoders, which a corpus pays once and not for each file. The end, when one CPU may be idle
because the other has the last unit, counts; the rate between the first report after a tenth of the
sources and the last one before nine tenths, which a large corpus comes near to, stands beside it,
and so does the whole job.

Beside it, on one of the CPUs, the CPU that the same files take in a bare PyAV loop, which decodes
every frame and keeps nothing, and in a unit of ingest without Ray. As shares of the time that the
CPUs had between the first and the last source they say what is not decoding, and what is Ray's;
what the job itself did not use, other programs had, or nobody.

Only 12 files are made. The others have the same packets and a box of free space at their end that
makes them other files, for otherwise they would be rejected as duplicates.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpu_time import cpu_seconds_so_far, tree_cpu_seconds
from ingest_cost import decode_all, make
from ingest_cost import ingest as ingest_unit
from program import environment, median_and_range, options

from pipelines.config.base import RaySettings
from pipelines.config.ingest import IngestConfig
from pipelines.ingest.ingest import ingest
from pipelines.ingest.worker import UnitIngester
from ray_jobs.cli.cluster import connected
from ray_jobs.ingest import settings_of

DEFAULTS = {"clips": "1024", "repeats": "3"}
NUM_MADE = 12
SPANS = ("first_to_last", "middle", "whole_job")
EDGE = 0.1
"""Share of the sources at the beginning and at the end that the middle leaves out."""


@dataclass(frozen=True)
class Report:
    """How many sources are finished, when, and the CPU seconds of all processes so far."""

    done: float
    at: float
    cpu_seconds: float


def main() -> None:
    """Prints tables, and one JSON line last."""
    given = options(DEFAULTS)
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        raise SystemExit(f"needs two CPUs and has {len(cpus)}")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        made = make(root / "made", NUM_MADE)
        copy(made, root / "media", int(given["clips"]))
        turns = [turn(root, cpus) for _ in range(int(given["repeats"]))]
    results = report(turns)
    line = {"benchmark": "ingest_scaling", **environment("ray", "av", "pyarrow")}
    print(json.dumps(line | {"settings": given, "turns": turns, "results": results}))


def copy(made: Path, folder: Path, count: int) -> None:
    """Writes so many files that differ in what follows the last packet."""
    folder.mkdir()
    whole = [path.read_bytes() for path in sorted(made.iterdir())]
    for number in range(count):
        # A box of MP4: its length, its kind, and a content that readers skip.
        box = (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")
        (folder / f"{number:06}.mp4").write_bytes(whole[number % len(whole)] + box)


def turn(root: Path, cpus: Sequence[int]) -> dict[str, dict[str, float]]:
    """One CPU, two CPUs, and the files without Ray."""
    found: dict[str, dict[str, float]] = {}
    for what, on in (("alone", cpus[:1]), ("1", cpus[:1]), ("2", cpus[:2])):
        found[what] = pinned(what, on, root)
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in found[what].items())
        print(f"{what:6} {numbers}", flush=True)
    return found


def pinned(what: str, cpus: Sequence[int], root: Path) -> dict[str, float]:
    """Measures in a process that has these CPUs from its first instruction."""
    program = "import sys, ingest_scaling; ingest_scaling.measure(sys.argv[1], sys.argv[2])"
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, what, str(root)],
            cwd=Path(__file__).parent,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    finally:
        os.sched_setaffinity(0, before)
    numbers: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return numbers


def measure(what: str, root: str) -> None:
    """Prints numbers as JSON: of the files without Ray, or of a job with so many CPUs."""
    folder = Path(root)
    numbers = alone(folder) if what == "alone" else job(folder, int(what))
    print(json.dumps(numbers))


def alone(root: Path) -> dict[str, float]:
    """CPU seconds that a file takes without Ray, after a round that is not counted."""
    paths = [str(path) for path in sorted((root / "made").iterdir())]
    unit = UnitIngester(str(root / "alone"), settings_of(config(root)).model_dump(mode="json"))
    ways: dict[str, Any] = {
        "bare_decode": lambda: decode_all(paths),
        "without_ray": lambda: ingest_unit(unit, paths, root / "alone"),
    }
    found = {}
    for name, work in ways.items():
        work()
        found[name] = tree_cpu_seconds(work) / len(paths)
    unit.close()
    return found


def config(root: Path) -> IngestConfig:
    """The job's settings."""
    return IngestConfig(input=str(root / "media"), output=str(root / "clips"))


def job(root: Path, num_cpus: int) -> dict[str, float]:
    """Ingests, and gives what happened a second over each span."""
    reports: list[Report] = []

    def on_progress(done: float, total: float, note: str) -> None:
        if note.endswith("rejected"):  # before, files are listed and hashed
            reports.append(Report(done, time.monotonic(), cpu_seconds_so_far()))

    job_config = config(root)
    begun = time.monotonic()
    with connected(RaySettings(address="local", num_cpus=num_cpus)):
        summary = ingest(
            str(job_config.input),
            job_config.output,
            settings_of(job_config),
            on_progress=on_progress,
        )
    over = time.monotonic()
    shutil.rmtree(job_config.output)
    first, last = reports[0], reports[-1]
    assert summary.accepted == last.done == len(list((root / "media").iterdir()))
    middle = [each for each in reports if EDGE <= each.done / last.done <= 1 - EDGE]
    if len(middle) < 2:
        raise SystemExit(f"clips={last.done:g} end too soon for {len(reports)} reports: take more")
    rates = {
        "first_to_last": rate(first, last),
        "middle": rate(middle[0], middle[-1]),
        "whole_job": last.done / (over - begun),
    }
    clips, seconds = (total / last.done for total in (summary.clips, summary.media_seconds))
    cpu = (last.cpu_seconds - first.cpu_seconds) / (last.done - first.done)
    return {
        **{f"{span}_sources_per_second": rate for span, rate in rates.items()},
        "clips_per_second": clips * rates["first_to_last"],
        "video_seconds_per_second": seconds * rates["first_to_last"],
        "cpu_seconds_per_source": cpu,
        "busy": cpu * rates["first_to_last"] / num_cpus,
        "seconds_to_first": first.at - begun,
        "seconds": over - begun,
    }


def rate(first: Report, last: Report) -> float:
    """Sources a second between two reports."""
    return (last.done - first.done) / (last.at - first.at)


def report(turns: Sequence[dict[str, dict[str, float]]]) -> dict[str, list[float]]:
    """Prints what came out, ratios within each turn."""
    for cpus in ("1", "2"):
        clips, video = (
            median_and_range([found[cpus][name] for found in turns], 1)
            for name in ("clips_per_second", "video_seconds_per_second")
        )
        print(f"CPUs: {cpus}  {clips} clips/s, {video} s of video/s")
    results: dict[str, list[float]] = {}
    for span in SPANS:
        rate = f"{span}_sources_per_second"
        results[span] = [found["2"][rate] / found["1"][rate] for found in turns]
        print(f"two CPUs against one, {span}: {median_and_range(results[span])}")
    for cpus in ("1", "2"):
        busy = results[f"busy_{cpus}"] = [found[cpus]["busy"] for found in turns]
        print(f"CPUs: {cpus}  used by the job: {median_and_range(busy)} of their time")
        for part in ("without_ray", "bare_decode"):
            needs = [
                found["alone"][part] / found[cpus]["cpu_seconds_per_source"] * found[cpus]["busy"]
                for found in turns
            ]
            results[f"{part}_{cpus}"] = needs
            print(f"         {part} would need: {median_and_range(needs)}")
    return results


if __name__ == "__main__":
    main()
