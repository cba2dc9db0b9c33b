"""What a job prints while it works: one line a stage: how far, how fast, how long yet."""

import sys
import time
from collections.abc import Sequence

LOG_SECONDS = 5.0
"""Between two lines where the output is not a terminal."""


class StageProgress:
    """Progress of one stage; rewrites its line on a terminal, adds lines in a log."""

    def __init__(self, stage: str, unit: str) -> None:
        self._stage = stage
        self._unit = unit
        self._started = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._printed = 0.0
        self._last = ""

    def __call__(self, done: float, total: float, note: str) -> None:
        """Shows the state unless it was shown just now."""
        now = time.monotonic()
        if self._first is None or done <= self._first[1]:
            self._first = (now, done)  # what comes before the first unit is no measure of its rate
        terminal = sys.stdout.isatty()
        if done < total and now - self._printed < (0.2 if terminal else LOG_SECONDS):
            return
        line = self._line(now, done, total, note)
        if line == self._last:
            return
        self._printed, self._last = now, line
        print(f"\r\x1b[K{line}" if terminal else line, end="" if terminal else "\n", flush=True)

    def _line(self, now: float, done: float, total: float, note: str) -> str:
        start, begun_at = self._first or (now, done)
        rate = (done - begun_at) / (now - start) if now > start else 0.0
        text = f"{self._stage:9} {int(done)}/{total:.0f} {self._unit}"
        if rate > 0:
            text += f"  {_rate(rate, self._unit)}"
            if done < total:
                text += f"  {duration((total - done) / rate)} left"
        return f"{text}  {note}".rstrip()

    def finish(self, result: str) -> None:
        """Ends the stage with what came out and how long it took."""
        if sys.stdout.isatty():
            print("\r\x1b[K", end="")
        print(
            f"{self._stage:9} {result} ({duration(time.monotonic() - self._started)})", flush=True
        )


def _rate(per_second: float, unit: str) -> str:
    if per_second < 0.1:
        return f"{3600 * per_second:.1f} {unit}/h"
    return f"{per_second:.1f} {unit}/s"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
