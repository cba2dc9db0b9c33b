"""Messages of a decoder, and their validation.

An answer is a length and a JSON header; frames and samples lie in shared memory. A file may control
the decoder, so each value is checked before use: its type, its range, and whether it fits the
request and earlier answers.
"""

import json
import math
import re
import socket
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from pipelines.media.container import DecodeError, MediaInfo
from pipelines.media.picture import MAX_ELONGATION
from pipelines.media.reasons import REASONS
from pipelines.media.segments import ClockRepairs, Segment

LENGTH_BYTES = 4
MAX_HEADER_BYTES = 16_000
MAX_MESSAGE_CHARACTERS = 300
TAKEN = b"\n"
"""Sent by the parent after it has copied a segment from the memory."""
NONSENSE = (ValueError, LookupError, TypeError, ArithmeticError, RecursionError)
"""Exceptions of reading an invalid answer."""
OUTSIDE_REASONS = frozenset({"decoder_crashed", "out_of_memory"})
"""Failures that the file may not have caused: something else may have killed the decoder or used up
its memory. The file gets a second try in a new decoder."""

_NAME = re.compile(r"[\w.,+-]{1,120}", re.ASCII)
_MAX_INTEGER = (1 << 31) - 1
_SLACK_SECONDS = 1e-6
_REASONS = frozenset(REASONS) - {"empty_file", "too_large", "duplicate", "no_picture", "no_sound"}


def send(channel: socket.socket, message: dict[str, Any], file: int | None = None) -> None:
    """Sends a message with a descriptor."""
    data = json.dumps(message).encode()
    data = len(data).to_bytes(LENGTH_BYTES, "big") + data
    if file is not None:
        sent = socket.send_fds(channel, [data[:LENGTH_BYTES]], [file])
        data = data[sent:]
    channel.sendall(data)


def segment_header(segment: Segment) -> dict[str, Any]:
    """Returns the header of a segment."""
    return {
        "start_seconds": segment.start_seconds,
        "duration_seconds": segment.duration_seconds,
        "frames": None if segment.frames is None else segment.frames.shape,
        "samples": 0 if segment.waveform is None else len(segment.waveform),
        "decode_errors": segment.decode_errors,
        "info": asdict(segment.info),
        "repairs": asdict(segment.repairs),
    }


def failure(header: dict[str, Any]) -> DecodeError:
    """Returns the reason that a decoder gives for a failure.

    Raises:
        ValueError: If the reason is invalid.
    """
    reason, message = header["error"], header["message"]
    if reason not in _REASONS or not isinstance(message, str):
        raise ValueError("a reason that is none")
    # It is printed, so no control characters and nothing that cannot be encoded.
    shown = "".join(c if c.isprintable() else "?" for c in message[:MAX_MESSAGE_CHARACTERS])
    return DecodeError(reason, shown.encode(errors="replace").decode())


@dataclass
class Expectation:
    """Bounds of the segments of one file; `settings` are those of `decode_segments`."""

    settings: dict[str, Any]
    _end: float = 0.0
    """End of the previous segment."""
    seconds: float = field(default=0.0, init=False)
    """Total duration of all segments so far."""

    def __post_init__(self) -> None:
        rate = float(self.settings["frame_rate"])
        self._ticks = max(1, round(float(self.settings["segment_seconds"]) * rate))

    @property
    def max_bytes(self) -> int:
        """Largest size of a segment."""
        short = int(self.settings["short_side"])
        pixels = 3 * short * (MAX_ELONGATION * short + 1)
        seconds = self._ticks / float(self.settings["frame_rate"])
        samples = math.ceil(seconds * float(self.settings["sample_rate"])) + 1
        return self._ticks * pixels + 2 * samples

    def check(self, header: dict[str, Any]) -> None:
        """Checks the header of the next segment.

        Raises:
            ValueError: If it is impossible.
        """
        start = _number(header["start_seconds"], "start_seconds")
        seconds = _number(header["duration_seconds"], "duration_seconds")
        rate = float(self.settings["frame_rate"])
        num_ticks = round(seconds * rate)
        _require(start >= self._end - _SLACK_SECONDS, "segments that overlap")
        _require(0 < num_ticks <= self._ticks, "duration_seconds")
        _require(abs(seconds - num_ticks / rate) < _SLACK_SECONDS, "duration_seconds")
        self._end = start + seconds
        self.seconds += seconds
        most = float(self.settings.get("max_seconds", math.inf))
        _require(self.seconds <= most + _SLACK_SECONDS, "more seconds than allowed")
        self._check_shape(header["frames"], num_ticks)
        samples = _integer(header["samples"], "samples")
        expected = seconds * float(self.settings["sample_rate"])
        _require(samples == 0 or abs(samples - expected) <= 1, "samples")
        _require(samples > 0 or header["frames"] is not None, "a segment of nothing")
        _integer(header["decode_errors"], "decode_errors")
        for name in ClockRepairs.__dataclass_fields__:
            _integer(header["repairs"][name], name)

    def _check_shape(self, shape: object, num_ticks: int) -> None:
        if shape is None:
            return
        _require(isinstance(shape, list) and len(shape) == 4, "frames")
        assert isinstance(shape, list)
        sides = sorted(_integer(side, "frames") for side in shape[1:3])
        short = int(self.settings["short_side"])
        _require(shape[0] == num_ticks and shape[3] == 3, "frames")
        _require(1 <= sides[0] <= short and sides[1] <= MAX_ELONGATION * short, "frames")


_Record = TypeVar("_Record", MediaInfo, ClockRepairs)


def record(kind: type[_Record], values: object) -> _Record:
    """Builds a record, such as `MediaInfo`, from values of the decoder.

    Raises:
        ValueError, TypeError: If a value has another type, or lies outside any sensible range.
    """
    _require(isinstance(values, dict), kind.__name__)
    assert isinstance(values, dict)
    for entry in fields(kind):
        _check_type(values[entry.name], str(entry.type), entry.name)
    return kind(**values)


def _check_type(value: object, kind: str, what: str) -> None:
    """Checks a value against the declared type of a field."""
    if value is None:
        _require(kind.endswith("None"), what)
    elif "str" in kind:
        _require(isinstance(value, str) and bool(_NAME.fullmatch(value)), what)
    elif "bool" in kind:
        _require(type(value) is bool, what)
    elif "int" in kind:
        _require(type(value) is int and abs(value) <= _MAX_INTEGER + 1, what)
    else:
        _number(value, what)


def _require(is_right: bool, what: str) -> None:
    if not is_right:
        raise ValueError(f"{what} cannot be right")


def _integer(value: object, what: str) -> int:
    _require(type(value) is int and 0 <= value <= _MAX_INTEGER, what)
    assert isinstance(value, int)
    return value


def _number(value: object, what: str) -> float:
    _require(type(value) in (int, float), what)
    assert isinstance(value, int | float)
    _require(math.isfinite(value) and abs(value) < 1e12, what)
    return float(value)
