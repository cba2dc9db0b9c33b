"""CPU time of this process and of all that it started, also of what has ended since."""

import resource
from collections.abc import Callable, Collection

import psutil


def tree_cpu_seconds(work: Callable[[], object], apart_from: Collection[int] = ()) -> float:
    """Runs it and gives the user and system time that it took in all processes.

    Args:
        work: What to run.
        apart_from: Processes that live all the time and are not counted.
    """
    before = cpu_seconds_so_far(apart_from)
    work()
    return cpu_seconds_so_far(apart_from) - before


def cpu_seconds_so_far(apart_from: Collection[int] = ()) -> float:
    """User and system time of this process and of all that it started."""
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(usage.ru_utime + usage.ru_stime for usage in own)
    for process in psutil.Process().children(recursive=True):
        if process.pid in apart_from:
            continue
        try:
            # A process that was waited for is counted with its parent's children.
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total
