"""Live measures of jobs for Prometheus, which Ray exports on every node as `ray_xkd_...`.

MLflow keeps the history of a training; these measures are for dashboards and alerts, see
`docker/monitoring/`. Without a Ray, and for names that Ray does not know yet, nothing happens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import ray
from ray.util.metrics import Counter, Gauge


@dataclass(frozen=True)
class Meter:
    """What one measure means."""

    kind: Literal["gauge", "counter"]
    about: str
    tag: str
    """Name of its tag: the run, or the reason."""

    def exported(self, name: str) -> str:
        """Returns the name that Prometheus sees."""
        return f"ray_{name}" + ("_total" if self.kind == "counter" else "")


METERS: Mapping[str, Meter] = {
    "xkd_clips_per_second": Meter("gauge", "Clips of all workers per second.", "run"),
    "xkd_data_wait_share": Meter("gauge", "Share of the time that waits for clips.", "run"),
    "xkd_mfu": Meter("gauge", "Share of the devices' peak that the model reaches.", "run"),
    "xkd_loss": Meter("gauge", "Loss of the last record.", "run"),
    "xkd_step": Meter("gauge", "Steps done.", "run"),
    "xkd_total_steps": Meter("gauge", "Steps of the training.", "run"),
    "xkd_collapsed": Meter("gauge", "1 while a collapse is reported, else 0.", "run"),
    "xkd_target_information": Meter(
        "gauge", "How much the targets tell clips apart: the lower of both teachers.", "run"
    ),
    "xkd_checkpoint_time": Meter("gauge", "When the last checkpoint was complete, UNIX s.", "run"),
    "xkd_start_time": Meter("gauge", "When the workers last started, UNIX s.", "run"),
    "xkd_sources": Meter("counter", "Sources that ingest, embed or evaluate has finished.", "job"),
    "xkd_clips": Meter("counter", "Rows that these have given.", "job"),
    "xkd_rejects": Meter("counter", "Sources that were rejected.", "reason"),
}
"""All measures, by name."""

_OF_RECORDS = {
    "speed/clips_per_second": "xkd_clips_per_second",
    "time/data_wait_share": "xkd_data_wait_share",
    "speed/mfu": "xkd_mfu",
    "loss/total": "xkd_loss",
    "health/collapsed": "xkd_collapsed",
}
"""Measures by the names of metrics in MLflow."""
_INFORMATION = "target_information"


def show(name: str, value: float, tag: str) -> None:
    """Sets a gauge."""
    if ray.is_initialized():
        _meter(name).set(value, {METERS[name].tag: tag})


def count(name: str, number: float, tag: str) -> None:
    """Adds to a counter."""
    if number and ray.is_initialized():
        _meter(name).inc(number, {METERS[name].tag: tag})


def show_record(numbers: Mapping[str, float], step: int, total_steps: int, run: str) -> None:
    """Shows what a training records of a step."""
    for metric, name in _OF_RECORDS.items():
        if metric in numbers:
            show(name, numbers[metric], run)
    show("xkd_step", step + 1, run)
    show("xkd_total_steps", total_steps, run)
    if told := [value for name, value in numbers.items() if name.endswith(_INFORMATION)]:
        show("xkd_target_information", min(told), run)


@cache
def _meter(name: str) -> Any:
    meter = METERS[name]
    kind = Gauge if meter.kind == "gauge" else Counter
    return kind(name, description=meter.about, tag_keys=(meter.tag,))
