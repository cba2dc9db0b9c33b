"""What the programs of this folder share: their settings, and what they say of the machine."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any


def options(defaults: Mapping[str, str]) -> dict[str, str]:
    """The settings of the command line, `key=value`, over the defaults.

    Raises:
        SystemExit: If one is not of this form or has no default.
    """
    given = dict(defaults)
    for argument in sys.argv[1:]:
        name, is_given, value = argument.partition("=")
        if not is_given or name not in defaults:
            known = " ".join(f"{key}={default}" for key, default in defaults.items())
            raise SystemExit(f"unknown: {argument}; settings and their defaults: {known}")
        given[name] = value
    return given


def environment(*packages: str) -> dict[str, Any]:
    """Versions and the machine, for the line of JSON; the load tells what else it did."""
    cpus = sorted(os.sched_getaffinity(0))
    names = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "cpu": next((name.partition(": ")[2] for name in names if "model name" in name), ""),
        "cpus": len(cpus),
        "sibling_cpus": sorted({_siblings(cpu) for cpu in cpus}),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def most_memory(pid: int | str = "self") -> int:
    """The most bytes that a process ever had in memory."""
    # Not `getrusage`, whose peak a child inherits.
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def median_and_range(values: Sequence[float], digits: int = 2) -> str:
    """Median and range."""
    shown = [f"{value:.{digits}f}" for value in (median(values), min(values), max(values))]
    return "{} ({} to {})".format(*shown)


def _siblings(cpu: int) -> str:
    """The CPUs that are threads of the same core."""
    file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return file.read_text().strip() if file.exists() else str(cpu)
