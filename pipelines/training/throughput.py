"""Throughput of a training, and warnings about what slows it down.

Warns, with a remedy, when waiting for clips begins to take more than `MAX_WAIT` of the time, or
when throughput drops far below its earlier value.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

MAX_WAIT = 0.1
"""Share of time spent waiting for clips above which to warn."""
_MIN_PACE = 0.7
"""Share of the usual throughput below which to warn."""
_JUDGED_SECONDS = 30.0
"""Time over which a run is judged; single steps are too noisy."""
_USUAL_TIMES = 20
"""Number of judged periods whose median is the usual throughput."""
MIN_TIMES = 5
"""Number of judged periods before there is a usual throughput."""

WAIT_REMEDY = (
    "put the clip dataset on a faster disk, or give workers more CPUs (cpus_per_worker) to read it"
)
_PACE_REMEDY = (
    "look for other programs on the machine, a device that is too hot, or a slow worker "
    "(system metrics in MLflow)"
)


class Clock:
    """Measures throughput and where this worker's time goes.

    The parts of a lap sum to all of it:

        waiting for clips | copy and views | step | stall at a checkpoint | other

    They are times of the thread that trains. On a GPU it runs ahead of the device until it reads
    metrics, which counts as `other`: a large share means that the GPU has always work to do.

    Args:
        batch_size: Clips of a step, of all workers together.
        clip_flops: Model FLOPs of a clip's training step.
        peak_flops: FLOP/s of all devices together; None if unknown, and then there is no `mfu`.
    """

    def __init__(
        self, batch_size: int, clip_flops: float = 0.0, peak_flops: float | None = None
    ) -> None:
        self._batch_size = batch_size
        self._clip_flops, self._peak_flops = clip_flops, peak_flops
        self._started = self._lap_started = time.monotonic()
        self._steps = self._lap_steps = 0
        self._waited = self._stalled = self._viewed = self._stepped = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of the block as waiting for clips."""
        begun = time.monotonic()
        yield
        self._waited += time.monotonic() - begun

    @contextmanager
    def stalling(self) -> Iterator[None]:
        """Counts the time of the block as a stall at a checkpoint."""
        begun = time.monotonic()
        yield
        self._stalled += time.monotonic() - begun

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """Counts the time of the block as copying clips to the device and making their views."""
        begun = time.monotonic()
        yield
        self._viewed += time.monotonic() - begun

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Counts the time of the block, stalls in it aside, as a training step."""
        begun, stalled = time.monotonic(), self._stalled
        yield
        self._stepped += time.monotonic() - begun - (self._stalled - stalled)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Excludes the time of the block from all measures."""
        begun = time.monotonic()
        yield
        paused = time.monotonic() - begun
        self._started += paused
        self._lap_started += paused

    def step_ends(self) -> None:
        """Counts a step; the first one is not timed because it includes warm-up."""
        self._steps += 1
        if self._steps == 1:
            self._started = self._lap_started = time.monotonic()
            self._waited = self._stalled = self._viewed = self._stepped = 0.0
        else:
            self._lap_steps += 1

    @property
    def waited_seconds(self) -> float:
        """Time that this worker waited for clips since the last lap."""
        return self._waited

    def lap(self, waited_seconds: float) -> dict[str, float]:
        """Returns the measures since the last lap; empty if no step was timed.

        Args:
            waited_seconds: Wait for clips of the worker that waited longest. The others wait for
                that worker in turn, so their own waits are too short.
        """
        numbers: dict[str, float] = {}
        if self._lap_steps:
            seconds = max(time.monotonic() - self._lap_started, 1e-9)
            pace = self._lap_steps * self._batch_size / seconds
            numbers |= {
                "speed/clips_per_second": pace,
                "time/clips_per_second": pace,
                "time/step_seconds": seconds / self._lap_steps,
                "time/lap_seconds": seconds,
                "time/data_wait_share": min(waited_seconds / seconds, 1.0),
                "time/checkpoint_stall_seconds": self._stalled,
                **self._shares(seconds),
            }
            if self._peak_flops:
                numbers["speed/mfu"] = pace * self._clip_flops / self._peak_flops
        self._lap_started, self._lap_steps = time.monotonic(), 0
        self._waited = self._stalled = self._viewed = self._stepped = 0.0
        return numbers

    def _shares(self, seconds: float) -> dict[str, float]:
        """Shares of a lap that sum to 1."""
        parts = {
            "wait": self._waited,
            "views": self._viewed,
            "step": self._stepped,
            "stall": self._stalled,
        }
        parts["other"] = max(seconds - sum(parts.values()), 0.0)
        return {f"time/share_{name}": part / seconds for name, part in parts.items()}

    def clips_per_second(self) -> float:
        """Throughput of all steps but the first; NaN if there are none."""
        if self._steps < 2:
            return math.nan
        return (self._steps - 1) * self._batch_size / (time.monotonic() - self._started)


class SlowdownWatch:
    """Judges a run by its laps and compares it with earlier ones."""

    def __init__(self, judged_seconds: float = _JUDGED_SECONDS) -> None:
        self._judged_seconds = judged_seconds
        self._paces: deque[float] = deque(maxlen=_USUAL_TIMES)
        self._is_slow = {"data_wait": False, "pace": False}
        self._seconds = self._waited = self._clips = 0.0

    def new_warnings(self, numbers: Mapping[str, float], step: int) -> dict[str, str]:
        """Returns warnings that begin with this lap, by kind."""
        if "time/lap_seconds" not in numbers:
            return {}
        seconds = numbers["time/lap_seconds"]
        self._seconds += seconds
        self._waited += seconds * numbers["time/data_wait_share"]
        self._clips += seconds * numbers["time/clips_per_second"]
        if self._seconds < self._judged_seconds:
            return {}
        found = {
            "data_wait": _data_wait(self._waited / self._seconds, step),
            "pace": self._pace(self._clips / self._seconds, step),
        }
        self._seconds = self._waited = self._clips = 0.0
        begun = {kind: text for kind, text in found.items() if text and not self._is_slow[kind]}
        self._is_slow = {kind: bool(text) for kind, text in found.items()}
        return begun

    def _pace(self, pace: float, step: int) -> str:
        usual = statistics.median(self._paces) if len(self._paces) >= MIN_TIMES else 0.0
        self._paces.append(pace)
        if pace >= _MIN_PACE * usual:
            return ""
        return f"step {step}: {pace:.3g} clips/s, and it was {usual:.3g} before; {_PACE_REMEDY}"


def _data_wait(share: float, step: int) -> str:
    if share <= MAX_WAIT:
        return ""
    return f"step {step}: {share:.0%} of the time is spent waiting for clips; {WAIT_REMEDY}"
