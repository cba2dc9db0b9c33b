"""CPU time of this process and of all that it started, also of what has ended since."""

import resource
from collections.abc import Callable

import psutil


def tree_cpu_seconds(work: Callable[[], object]) -> float:
    """Runs it and gives the user and system time that it took in all processes."""
    before = _used()
    work()
    return _used() - before


def _used() -> float:
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(usage.ru_utime + usage.ru_stime for usage in own)
    for process in psutil.Process().children(recursive=True):
        try:
            # A process that was waited for is counted with its parent's children.
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total
