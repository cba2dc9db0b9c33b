"""Ends a step that takes too long, and says where the step and its jobs are."""

import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tests.cluster.stand import Stand

_TAIL_LINES = 40
_STACK_SECONDS = 30.0


class StepTimeoutError(Exception):
    """A step has used up its time."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `StepTimeoutError` in the main thread, wherever it waits, after so many seconds."""

    def end(number: int, frame: FrameType | None) -> None:
        raise StepTimeoutError(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def account(stand: Stand, error: Exception) -> str:
    """Describes a failed step: where it was, its jobs' logs, and the stacks of their drivers."""
    here = str(Path(__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(here)]
    parts = ["the step was at", *(f"  {f.name}, {f.filename}:{f.lineno}: {f.line}" for f in frames)]
    for name in dict.fromkeys(name for name, _ in stand.submissions):
        lines = stand.log(name).splitlines()[-_TAIL_LINES:]
        parts += [f"--- log of {name}", *lines]
    for machine in stand.machines():
        for process in machine.processes("ray_jobs."):
            parts += [f"--- process {process} on {machine.name}", _stack(process)]
    return "\n".join(parts)


def _stack(process: int) -> str:
    program = str(Path(sys.executable).with_name("py-spy"))
    try:
        done = subprocess.run(
            [program, "dump", "--pid", str(process)],
            capture_output=True,
            text=True,
            timeout=_STACK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no stack: {error}"
    return done.stdout + done.stderr
