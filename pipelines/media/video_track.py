"""Decodes the picture of a source: the frame that is shown in the middle of each tick.

Times are seconds on the clock of `decode.decode_segments`. Packets already have their presentation
times (`timeline`).
"""

import math
from array import array
from bisect import bisect_left
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipelines.media.orientation import Orientation
from pipelines.media.picture import PictureConverter, same_shape
from pipelines.media.timeline import StreamTimeline, suffix_minima

MAX_LAST_SECONDS = 6 * 3600.0
"""A declared duration of the last frame above this is damaged."""
ROUNDING_TICKS = 0.02
"""Rounding of timestamps by containers; Matroska rounds to a millisecond."""
SAME_SECONDS = 1e-6
"""Timestamps closer than this are equal."""
SKIPPABLE_CODECS = frozenset({"h264", "hevc"})
INVENTING_CODECS = frozenset(
    {"mpeg4", "h263", "h263p", "flv", "msmpeg4v1", "msmpeg4v2", "msmpeg4", "wmv1", "wmv2"}
)
"""Decoders that begin before the first key picture and change a gray one instead."""
MAX_EARLY_SECONDS = 0.5
"""A picture that begins up to this long after its clip is shown from the beginning of the clip,
because codecs delay streams that start together. A later picture is not paired with the sound."""
MAX_REORDERED = 16
"""Pictures that a decoder holds at most to reorder them."""
DECODER_DELAY_PACKETS = 64
"""Packets that a decoder holds at most: 16 pictures to reorder, and some to spare."""


def native_rate(stream: VideoStream) -> float:
    """Returns the declared frames per second; 0 if unknown."""
    return float(stream.average_rate or stream.guessed_rate or 0)


class VideoTrack:
    """The picture, sampled in the middle of each tick.

    Sampling in the middle shows nothing more than half a tick early or late, and is robust to
    rounded timestamps near the beginning of a tick. A frame is shown until the next one begins,
    even if that one cannot be decoded, and the last frame to the end:

        frames   A--------B-----C--D------------------      (no middle shows C)
        ticks    |   .   |   .   |   .   |   .   |   .
        stored       A       B       D       D       D
    """

    def __init__(
        self,
        stream: VideoStream,
        times: StreamTimeline,
        origin: float,
        frame_rate: float,
        converter: PictureConverter,
        waits_for_key: bool = False,
    ) -> None:
        # One decoder per core without threads takes the fewest CPU seconds (measured).
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        self.stream = stream
        self.times = times
        self.pictures: list[tuple[int, NDArray[np.uint8]]] = []
        """The first tick that shows each frame."""
        self.known_until = -math.inf
        """Time up to which the picture is complete."""
        self.end = 0.0
        self.start: float | None = None
        self._origin = origin
        self._time_base = float(stream.time_base or 1)
        self._period = 1 / (native_rate(stream) or frame_rate)
        self._frame_rate = frame_rate
        self._converter = converter
        self._declared_aspects = _pixel_aspects(stream)
        self._held: VideoFrame | None = None
        self._held_since = 0.0
        self._is_stored = False
        self._next_tick = 0
        self._begins = array("d", times.shown - origin)
        self._number = -1
        self._latest = 0
        """Number of the last packet."""
        self._recent: list[int] = []
        self._still_due = suffix_minima(times.starts) - origin
        self._waits_for_key = waits_for_key and stream.codec_context.name in INVENTING_CODECS
        self._may_skip = stream.codec_context.name in SKIPPABLE_CODECS and not times.is_by_order
        self._skip: Literal["DEFAULT", "NONREF"] = "DEFAULT"

    @property
    def orientation(self) -> Orientation:
        """The orientation of the last stored picture."""
        return self._converter.orientation

    @property
    def first_tick(self) -> int:
        """The first tick whose middle shows a picture."""
        return self._tick_from(self.start or 0.0)

    def decode(self, packet: "Packet[Any] | None", number: int) -> int:
        """Decodes a packet, or flushes the decoder; returns the number of damaged frames."""
        if packet is not None:
            self._stamp(packet, number)
        num_corrupt = 0
        for frame in self.stream.decode(packet):
            self._waits_for_key &= not frame.key_frame
            num_corrupt += frame.is_corrupt or self._waits_for_key
            self.add(frame)
        # The decoder holds recent packets only.
        passed = number - DECODER_DELAY_PACKETS
        if packet is not None and passed >= 0:
            self.known_until = max(self.known_until, float(self._still_due[passed]))
        return num_corrupt

    def add(self, frame: VideoFrame) -> None:
        """Adds the next frame, which is shown until the one after it begins."""
        seconds = self._start_of(frame)
        if self._waits_for_key:
            return
        if self._held is not None:
            # Some streams step back. Where frames are lost, the previous frame stays.
            seconds = max(seconds, self._held_since)
            self._show_held(seconds)
        elif self.start is None:
            self.start = seconds
        if frame.key_frame or frame.rotation:
            self._converter.look(frame)  # only now, when the previous frame is stored
        self._held, self._held_since, self._is_stored = frame, seconds, False
        following = bisect_left(self._begins, seconds + SAME_SECONDS)
        is_last = following >= len(self._begins)
        until = math.inf if is_last else float(self._begins[following])
        if self.times.is_by_order and not len(self._begins):
            until = seconds + self._period
        self._show_held(until)
        self.known_until = max(self.known_until, seconds if is_last else until)
        self.end = seconds + self._duration(frame)

    def finish(self) -> None:
        """Shows the last frame until the end of the source."""
        self._show_held(math.inf)
        self._held, self.known_until = None, math.inf

    def take(self, first_tick: int, num_ticks: int) -> NDArray[np.uint8] | None:
        """Returns the frames of a segment.

        None if the picture begins too late for it, or is missing in one of several joined files.
        """
        stop_tick = first_tick + num_ticks
        chosen = [entry for entry in self.pictures if entry[0] < stop_tick]
        # The last frame stays.
        self.pictures = self.pictures[max(0, len(chosen) - 1) :]
        if not chosen or self._is_unseen(first_tick, stop_tick):
            return None
        late_ticks = max(0, chosen[0][0] - first_tick)
        if late_ticks > MAX_EARLY_SECONDS * self._frame_rate or 2 * late_ticks > num_ticks:
            return None
        pictures = same_shape([pixels for _, pixels in chosen])
        clip = np.empty((num_ticks, *pictures[0].shape), np.uint8)
        at = 0
        for tick in range(num_ticks):
            # A picture that begins late shows its first frame until then.
            while at + 1 < len(chosen) and chosen[at + 1][0] <= first_tick + tick:
                at += 1
            clip[tick] = pictures[at]
        return clip

    def _is_unseen(self, first_tick: int, stop_tick: int) -> bool:
        """Returns whether joined files without a picture take up more of a segment than delays."""
        start, stop = (tick / self._frame_rate + self._origin for tick in (first_tick, stop_tick))
        seconds = sum(max(0.0, min(stop, b) - max(start, a)) for a, b in self.times.unseen)
        return seconds > MAX_EARLY_SECONDS

    def is_held_at(self, seconds: float) -> bool:
        """Returns whether the picture ended before a time, so that its last frame is repeated."""
        return self.known_until == math.inf and seconds - self.end > MAX_EARLY_SECONDS

    def _stamp(self, packet: "Packet[Any]", number: int) -> None:
        """Sets the time of a packet, and so of its frame, from the timeline."""
        self._latest = number
        start = self.times.starts[number]
        packet.dts = None  # otherwise FFmpeg may prefer it as the time of the frame
        if self.times.is_by_order:
            packet.pts = number
        elif not math.isfinite(start):
            packet.pts = None
        else:
            packet.pts = round(start / self._time_base)
            if self._may_skip:
                self._skip_unneeded_frame(float(start) - self._origin)

    def _start_of(self, frame: VideoFrame) -> float:
        self._number += 1
        if self.times.is_by_order:
            if not self._number and frame.pts == 0:
                self._begins = _delayed(self._begins, self._latest)
            self._resume_order(frame)
            if self._number < len(self._begins):
                return float(self._begins[self._number])
        elif frame.pts is not None:
            return frame.pts * self._time_base - self._origin
        return self._held_since + self._period if self._held is not None else 0.0

    def _resume_order(self, frame: VideoFrame) -> None:
        """Corrects the frame number at a key frame, which follows all packets before it."""
        packet = frame.pts
        if packet is None:
            return
        if frame.key_frame and len(self._begins):
            self._number = max(self._number, packet + sum(at > packet for at in self._recent))
        self._recent = [*self._recent[1 - DECODER_DELAY_PACKETS :], packet]

    def _duration(self, frame: VideoFrame) -> float:
        """Returns the declared duration of the last frame, for sources without more sound."""
        if self.times.is_by_order:
            return self._period
        declared = (frame.duration or 0) * self._time_base
        return declared if 0 < declared <= MAX_LAST_SECONDS else self._period

    def _skip_unneeded_frame(self, start: float) -> None:
        """Lets the decoder drop a frame that no tick shows and no other frame depends on.

        This saves a quarter of decoding typical H.264 (measured). The packet scan tells when the
        next frame begins; declared durations can be wrong.
        """
        skip: Literal["DEFAULT", "NONREF"] = "DEFAULT"
        # NumPy's search takes ten times as long for a single number.
        following = bisect_left(self._begins, start + SAME_SECONDS)
        if following < len(self._begins):
            until = float(self._begins[following])
            if self._tick_from(start - SAME_SECONDS) >= self._tick_from(until + SAME_SECONDS):
                skip = "NONREF"
        if skip != self._skip:
            self.stream.codec_context.skip_frame = self._skip = skip

    def _tick_from(self, seconds: float) -> int:
        """Returns the first tick whose middle is not before a time."""
        return math.ceil(seconds * self._frame_rate - 0.5)

    def _show_held(self, until: float) -> None:
        """Stores the held frame if a tick shows it before a time."""
        if self._held is None:
            return
        first = max(self._next_tick, self._tick_from(self._held_since))
        is_last = until == math.inf
        if not self._is_stored and (is_last or self._tick_from(until) > first):
            self.pictures.append((first, self._converter.convert(self._held, self._pixel_aspect())))
            self._is_stored = True
        if not is_last:
            self._next_tick = max(first, self._tick_from(until))

    def _pixel_aspect(self) -> float:
        """Returns the width of a pixel divided by its height."""
        container, codec = now = _pixel_aspects(self.stream)
        # As in FFmpeg's tools, the container goes before the codec.
        # But some containers only copy what the codec declared at first, which can change.
        says_codec = self._declared_aspects[0] == self._declared_aspects[1]
        return float((codec if says_codec else container) or max(now) or 1)


def _delayed(slots: "array[float]", num_packets: int) -> "array[float]":
    """Returns when frames begin that come from the decoder some packets late, to be reordered.

    Only decoding times are known. A frame is decoded as many frames before it is shown as the
    decoder delays it, which matters where a recorder left out pictures. With a delay of 1:

        slots     0 1 2 . . . 6 7 8         packets are decoded
        begins    0 1 . . . 5 6 7 8         frames are shown, moved to begin at the first slot
    """
    steps = np.diff(slots)
    usual = float(np.median(steps)) if len(steps) else 0.0
    if not 0 < num_packets <= min(MAX_REORDERED, len(steps)) or steps.max() < 1.5 * usual:
        return slots
    after = slots[-1] + usual * np.arange(1, num_packets + 1)
    return array("d", np.concatenate([slots[num_packets:], after]) - num_packets * usual)


def _pixel_aspects(stream: VideoStream) -> tuple[Fraction, Fraction]:
    """Returns the pixel aspect of the container and of the codec; 0 if unknown."""
    found = stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio
    # PyAV 19 has a type of its own for ratios.
    container, codec = (
        Fraction(ratio.numerator, ratio.denominator) if ratio else Fraction(0) for ratio in found
    )
    return container, codec
