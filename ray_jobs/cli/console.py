"""Console progress of a job: how far each stage is, its rate, and the time left.

On a terminal, rich draws a bar. Elsewhere, a stage prints a plain line every few seconds.
"""

import sys
import threading
import time
from collections.abc import Callable, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.quantities import duration

_UNITS_FOR_A_RATE = 3.0
"""The first units wait for processes to start; a rate from them alone is far too low."""
_LOG_SECONDS = 5.0
"""Time between two lines if the output is not a terminal."""
_BAR_WIDTH = 20
_MIN_BAR_WIDTH = 5
_MIN_LAST_COLUMN = 12
_REFRESHES_A_SECOND = 4

_shown: "StageProgress | None" = None
"""The stage whose bar is on the terminal. There is only one at a time."""


class StageProgress:
    """Progress of one stage.

    Args:
        stage: Name at the beginning of the line.
        unit: Noun of what is counted, in the plural.
        details: Returns what a terminal shows below the bar. Called for each redraw.
    """

    def __init__(
        self, stage: str, unit: str, details: Callable[[], RenderableType] | None = None
    ) -> None:
        self._stage = stage
        self._unit = unit
        self._details = details
        self._started = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._printed = 0.0
        self._last = ""
        self._live: Live | None = None
        self._lock = threading.Lock()  # a thread reports progress, the driver ends the stage

    def __call__(self, done: float, total: float, note: str) -> None:
        """Shows the progress, at most a few times a second."""
        now = time.monotonic()
        if self._first is None or done <= self._first[1]:
            self._first = (now, done)  # time before the first unit does not count
        is_drawn = _is_terminal()
        pause = 1 / _REFRESHES_A_SECOND if is_drawn else _LOG_SECONDS
        if done < total and now - self._printed < pause:
            return
        columns = self._columns(now, done, total)
        line = f"{'  '.join(columns)}  {note}".rstrip()
        if line == self._last and not (is_drawn and self._details):
            return
        self._printed, self._last = now, line
        if is_drawn:
            self._draw(columns, done, total, note)
        else:
            print(line, flush=True)

    def _columns(self, now: float, done: float, total: float) -> list[str]:
        start, begun_at = self._first or (now, done)
        is_known = done - begun_at >= min(_UNITS_FOR_A_RATE, total - begun_at) and now > start
        rate = (done - begun_at) / (now - start) if is_known else 0.0
        is_counted = done > 0 or total > 1  # "0/1" would say nothing
        counts = f"{int(done)}/{total:.0f} {self._unit}" if is_counted else "..."
        columns = [f"{self._stage:9} {counts}"]
        if rate > 0:
            columns.append(_rate(rate, self._unit))
            if done < total:
                columns.append(f"{duration((total - done) / rate)} left")
        return columns

    def _draw(self, columns: Sequence[str], done: float, total: float, note: str) -> None:
        """Redraws the bar with the note and the details below it."""
        global _shown
        parts: list[RenderableType] = [_Bar(columns, done, total)]
        if note:
            parts.append(Text(f"{'':9} {note}", style="dim", overflow="fold"))
        if self._details is not None:
            parts.append(self._details())
        with self._lock:
            if self._live is None:
                close_progress()
                self._live = _live()
                self._live.start()
                _shown = self
            self._live.update(Group(*parts), refresh=True)

    def close(self) -> None:
        """Leaves the bar as it is and releases the terminal."""
        global _shown
        with self._lock:
            live, self._live = self._live, None
        if live is not None:
            live.stop()
        if _shown is self:
            _shown = None

    def finish(self, result: str) -> None:
        """Ends the stage with its result and duration."""
        if self._live is not None:
            self._live.transient = True  # the line below replaces the bar
        self.close()
        first, *rest = result.splitlines()
        took = duration(time.monotonic() - self._started)
        print("\n".join([f"{self._stage:9} {first} ({took})", *rest]), flush=True)


class _Bar:
    """Counts, a bar and the rate in one line; a narrow terminal gets a shorter bar, or none."""

    def __init__(self, columns: Sequence[str], done: float, total: float) -> None:
        self._counts, *speed = columns
        self._speed = "  ".join(speed)
        self._total, self._done = max(total, 1e-9), done

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the line."""
        width = min(_BAR_WIDTH, options.max_width - len(self._counts) - len(self._speed) - 4)
        if width < _MIN_BAR_WIDTH:
            line = f"{self._counts}  {self._speed}".rstrip()
            yield Text(line, no_wrap=True, overflow="ellipsis")
            return
        grid = Table.grid(padding=(0, 2))
        bar = ProgressBar(self._total, self._done, width=width)
        grid.add_row(Text(self._counts), bar, Text(self._speed))
        yield grid


class FittedTable:
    """Rows in one line each, under a header, for a terminal of any width.

    The last column is cut where the terminal ends. If less than `_MIN_LAST_COLUMN` of it is left,
    columns are left out, the last ones first, until the others fit.
    """

    def __init__(self, rows: Sequence[Sequence[str]], more: str = "") -> None:
        self._rows = rows
        self._more = more

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the header, the rows, and what follows them."""
        widths = [max(map(len, column)) for column in zip(*self._rows, strict=True)]
        *fixed, last = widths
        needed = [*fixed, min(last, _MIN_LAST_COLUMN)]
        while len(needed) > 1 and sum(needed) + 2 * (len(needed) - 1) > options.max_width:
            needed.pop()
        for number, row in enumerate(self._rows):
            cells = [cell.ljust(width) for cell, width in zip(row, fixed, strict=False)]
            line = "  ".join([*cells, row[-1]][: len(needed)])
            style = "" if number else "dim"
            yield Text(line.rstrip(), style=style, no_wrap=True, overflow="ellipsis")
        if self._more:
            yield Text(self._more, no_wrap=True, overflow="ellipsis")


def close_progress() -> None:
    """Releases the terminal if a stage did not finish."""
    if _shown is not None:
        _shown.close()


def _is_terminal() -> bool:
    """Returns whether the output is a terminal that can redraw a bar."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


def _live() -> Live:
    console = Console(file=sys.stdout, highlight=False)
    return Live(
        console=console,
        auto_refresh=False,  # what has not changed is not written again
        vertical_overflow="ellipsis",
        # Other output on the same terminal appears above the bar.
        redirect_stderr=sys.stderr.isatty(),
    )


def _rate(per_second: float, unit: str) -> str:
    if per_second < 0.1:
        return f"{3600 * per_second:.1f} {unit}/h"
    return f"{per_second:.1f} {unit}/s"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows as aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
