"""The two streams of a source while it is decoded: frames at ticks, sound at samples.

Times are seconds on the clock of `decode.decode_segments`. Both tracks keep what they have until it
is taken. When their packets are presented is decided before (`timeline`).
"""

import math
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipelines.media.mixing import MonoMixer
from pipelines.media.orientation import Orientation
from pipelines.media.picture import PictureConverter, same_shape
from pipelines.media.sound_clock import HOLE_SECONDS
from pipelines.media.stretch import Stretcher
from pipelines.media.timeline import StreamTimeline

MAX_LAST_SECONDS = 6 * 3600.0
"""A last frame that claims to last longer is damaged."""
ROUNDING_TICKS = 0.02
"""Containers round timestamps, Matroska to a millisecond."""
SAME_SECONDS = 1e-6
"""Timestamps that are closer are the same."""
SKIPPABLE_CODECS = frozenset({"h264", "hevc"})
DECODER_DELAY_PACKETS = 64
"""A decoder holds at most so many packets: 16 pictures to reorder, and some to spare."""
DRAIN_SAMPLES = 8192
"""Samples that are resampled at once (measured: cheaper than single frames, and than seconds)."""
MIN_NATIVE_SAMPLE_RATE = 100
"""Below it a header lies, and a second of sound would become hours."""
STEP_SECONDS = 0.015
"""Timestamps that move away from the samples so fast say that a packet was lost or damaged."""
MAX_ERROR_SECONDS = 0.25
"""Sound that is further from its timestamp is moved there at once."""
MAX_LATE_SECONDS = 2.0
"""Sound that is not out so long after its packet is lost."""
FOLLOW_RATE = 0.1
"""Per second; a slower one lets sound lag behind drift, a faster one is heard."""
MAX_DRIFT = 0.025
"""Sound is not stretched by more, which would be heard."""


def native_rate(stream: VideoStream) -> float:
    """Frames per second as declared, 0 if unknown."""
    return float(stream.average_rate or stream.guessed_rate or 0)


class VideoTrack:
    """The picture, sampled once a tick, in the middle of it.

    The middle, because then nothing is seen more than half a tick too early or too late, and
    because rounded timestamps near the beginning of a tick change nothing. A picture is on until
    the next one begins, whether or not that can be decoded, and the last one to the end:

        frames   A--------B-----C--D------------------      (C is on in no middle)
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
    ) -> None:
        # One decoder a core and no threads inside is the cheapest in CPU seconds (measured).
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        self.stream = stream
        self.times = times
        self.pictures: list[tuple[int, NDArray[np.uint8]]] = []
        """From which tick on each is on."""
        self.known_until = -math.inf
        """Up to here it is known what is seen."""
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
        self._begins = times.shown - origin
        self._number = -1
        self._recent: list[int] = []
        self._still_due = _suffix_minima(times.starts) - origin
        self._may_skip = stream.codec_context.name in SKIPPABLE_CODECS and not times.is_by_order
        self._skip: Literal["DEFAULT", "NONREF"] = "DEFAULT"

    @property
    def orientation(self) -> Orientation:
        """How the last picture that was stored was laid upright."""
        return self._converter.orientation

    def decode(self, packet: "Packet[Any] | None", number: int) -> int:
        """Decodes a packet, or without one what the decoder still holds; counts damaged frames."""
        if packet is not None:
            self._stamp(packet, number)
        num_corrupt = 0
        for frame in self.stream.decode(packet):
            num_corrupt += frame.is_corrupt
            self.add(frame)
        # What the decoder still holds was put in not long ago.
        passed = number - DECODER_DELAY_PACKETS
        if packet is not None and passed >= 0:
            self.known_until = max(self.known_until, float(self._still_due[passed]))
        return num_corrupt

    def add(self, frame: VideoFrame) -> None:
        """Takes the next frame, which is on until the next one is due."""
        seconds = self._start_of(frame)
        if self._held is not None:
            # Some streams step back; and where frames got lost, the one before them stays on.
            seconds = max(seconds, self._held_since)
            self._show_held(seconds)
        elif self.start is None:
            self.start = seconds
        self._held, self._held_since, self._is_stored = frame, seconds, False
        following = np.searchsorted(self._begins, seconds + SAME_SECONDS)
        is_last = following >= len(self._begins)
        until = math.inf if is_last else float(self._begins[following])
        if self.times.is_by_order and not len(self._begins):
            until = seconds + self._period
        self._show_held(until)
        self.known_until = max(self.known_until, seconds if is_last else until)
        self.end = seconds + self._duration(frame)

    def finish(self) -> None:
        """Shows the last frame to the end of the source."""
        self._show_held(math.inf)
        self._held, self.known_until = None, math.inf

    def take(self, first_tick: int, num_ticks: int) -> NDArray[np.uint8] | None:
        """Gives the frames of a segment, None if less than half of it is there."""
        stop_tick = first_tick + num_ticks
        chosen = [entry for entry in self.pictures if entry[0] < stop_tick]
        # The last one stays on.
        self.pictures = self.pictures[max(0, len(chosen) - 1) :]
        if not chosen or 2 * (stop_tick - max(first_tick, chosen[0][0])) < num_ticks:
            return None
        pictures = same_shape([pixels for _, pixels in chosen])
        clip = np.empty((num_ticks, *pictures[0].shape), np.uint8)
        at = 0
        for tick in range(num_ticks):
            # Before its first frame, a picture that begins late shows that.
            while at + 1 < len(chosen) and chosen[at + 1][0] <= first_tick + tick:
                at += 1
            clip[tick] = pictures[at]
        return clip

    def _stamp(self, packet: "Packet[Any]", number: int) -> None:
        """Gives a packet, and so its frame, the time of the timeline."""
        start = self.times.starts[number]
        packet.dts = None  # else FFmpeg may take it for a better time of the frame
        if self.times.is_by_order:
            packet.pts = number
        elif not np.isfinite(start):
            packet.pts = None
        else:
            packet.pts = round(start / self._time_base)
            if self._may_skip:
                self._skip_unneeded_frame(float(start) - self._origin)

    def _start_of(self, frame: VideoFrame) -> float:
        self._number += 1
        if self.times.is_by_order:
            self._resume_order(frame)
            if self._number < len(self._begins):
                return float(self._begins[self._number])
        elif frame.pts is not None:
            return frame.pts * self._time_base - self._origin
        return self._held_since + self._period if self._held is not None else 0.0

    def _resume_order(self, frame: VideoFrame) -> None:
        """Counts frames that got lost: before a key frame are all packets that came before it."""
        packet = frame.pts
        if packet is None:
            return
        if frame.key_frame and self._begins.size:
            self._number = max(self._number, packet + sum(at > packet for at in self._recent))
        self._recent = [*self._recent[1 - DECODER_DELAY_PACKETS :], packet]

    def _duration(self, frame: VideoFrame) -> float:
        """How long the last frame is on if no sound goes on, as far as the file says."""
        if self.times.is_by_order:
            return self._period
        declared = (frame.duration or 0) * self._time_base
        return declared if 0 < declared <= MAX_LAST_SECONDS else self._period

    def _skip_unneeded_frame(self, start: float) -> None:
        """Lets the decoder drop a frame that no tick shows and no other frame needs.

        It saves a quarter of the decoding of usual H.264 (measured). When the next frame begins is
        known from the scan; the duration that a packet declares can be wrong.
        """
        skip: Literal["DEFAULT", "NONREF"] = "DEFAULT"
        following = np.searchsorted(self._begins, start + SAME_SECONDS)
        if following < len(self._begins):
            until = float(self._begins[following])
            if self._tick_from(start - SAME_SECONDS) >= self._tick_from(until + SAME_SECONDS):
                skip = "NONREF"
        if skip != self._skip:
            self.stream.codec_context.skip_frame = self._skip = skip

    def _tick_from(self, seconds: float) -> int:
        """The first tick whose middle is not before a time."""
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
        """Width of a pixel by its height."""
        container, codec = now = _pixel_aspects(self.stream)
        # As FFmpeg's own tools have it: what the container says is before what the codec says.
        # Some containers only pass on what the codec said at first, which can change.
        says_codec = self._declared_aspects[0] == self._declared_aspects[1]
        return float((codec if says_codec else container) or max(now) or 1)


def _pixel_aspects(stream: VideoStream) -> tuple[Fraction, Fraction]:
    """As the container and as the codec say, 0 if they do not."""
    codec = stream.codec_context.sample_aspect_ratio
    return Fraction(stream.sample_aspect_ratio or 0), Fraction(codec or 0)


class AudioTrack:
    """The sound as 16-bit mono at one rate, in runs of samples without a hole.

    Where sound is missing, the next run begins later. Where timestamps drift away slowly, the run
    goes on, and is stretched after them if the picture goes with them.
    """

    def __init__(
        self, stream: AudioStream, times: StreamTimeline, origin: float, sample_rate: int
    ) -> None:
        stream.codec_context.thread_count = 1
        self.stream = stream
        self.times = times
        self.runs: list[tuple[int, NDArray[np.int16]]] = []
        self.known_until = -math.inf
        """Up to here it is known what is heard."""
        self.end = 0.0
        self.start: float | None = None
        self.gaps: list[float] = []
        """Where sound is missing, and silence is put."""
        self.bridged: list[float] = []
        """Where timestamps had drifted away, and the sound was stretched."""
        self._origin = origin
        self._time_base = float(stream.time_base or 1)
        self._sample_rate = sample_rate
        self._fifo: AudioFifo | None = None
        self._mixer: MonoMixer | None = None
        self._layout: tuple[str, str, int] | None = None
        self._pace = Pace()
        self._stretcher = Stretcher()
        self._run_drained = 0.0
        self._num_queued = 0
        self._write_at = 0
        self._break_at: float | None = None

    def decode(self, packet: "Packet[Any] | None", number: int) -> int:
        """Decodes a packet, or without one what the decoder still holds; counts damaged frames."""
        if packet is not None:
            start = self.times.starts[number]
            packet.pts = round(start / self._time_base) if np.isfinite(start) else None
            packet.dts = None
            if self.times.is_break[number] and np.isfinite(start):
                self._break_at = float(start) - self._origin
        num_corrupt = 0
        for frame in self.stream.decode(packet):
            num_corrupt += frame.is_corrupt
            self.add(frame)
        if packet is not None:
            self._look_ahead(number)
        return num_corrupt

    def add(self, frame: AudioFrame) -> None:
        """Takes the next samples."""
        if not frame.samples:
            return
        if frame.sample_rate < MIN_NATIVE_SAMPLE_RATE:
            raise ValueError(f"sample rate ({frame.sample_rate}) is absurd")
        layout = (frame.format.name, frame.layout.name, frame.sample_rate)
        seconds = expected = self._expected
        if frame.pts is not None:
            seconds = frame.pts * self._time_base - self._origin
        if self.start is None:
            self.start = seconds
        is_hole = self._is_hole(seconds - expected, seconds)
        if is_hole or layout != self._layout or self._fifo is None:
            if self._layout is not None and seconds - expected > HOLE_SECONDS:
                self.gaps.append(expected)
            self._begin_run(layout, seconds)
        assert self._fifo is not None
        frame.pts = None  # the queue would insist on gapless timestamps
        self._fifo.write(frame)
        self._num_queued += frame.samples
        if self._num_queued >= DRAIN_SAMPLES:
            self._drain(self._fifo.read())

    def finish(self) -> None:
        """Pushes out what is left at the end of the source."""
        self._end_run()
        self.known_until = math.inf

    def take(self, first_sample: int, num_samples: int) -> NDArray[np.int16] | None:
        """Gives the samples of a segment, None if less than half of it is there."""
        waveform = np.zeros(num_samples, np.int16)
        num_there = 0
        stop_sample = first_sample + num_samples
        for at, samples in self.runs:
            first, stop = max(at, first_sample), min(at + len(samples), stop_sample)
            if first < stop:
                waveform[first - first_sample : stop - first_sample] = samples[
                    first - at : stop - at
                ]
                num_there += stop - first
        self.runs = [run for run in self.runs if run[0] + len(run[1]) > stop_sample]
        return waveform if num_there and 2 * num_there >= num_samples else None

    @property
    def _expected(self) -> float:
        """When the next samples are due if none are missing."""
        rate = self._layout[2] if self._layout else 1
        return self._run_drained + self._num_queued / rate * self._pace.ratio

    def _is_hole(self, error: float, seconds: float) -> bool:
        """Whether a run ends here, because sound is missing or the clock is another one."""
        if self._break_at is not None and abs(seconds - self._break_at) <= abs(error):
            self._break_at = None
            return True
        step = abs(error - self._pace.error)
        self._pace.error = error
        if abs(error) <= HOLE_SECONDS or (error < 0 and not self.times.is_trusted):
            return False
        is_lost = self.times.is_followed and abs(error) > MAX_ERROR_SECONDS
        return step > STEP_SECONDS or is_lost

    def _look_ahead(self, number: int) -> None:
        """Finishes a run that a hole follows: what is silent is known before it is over."""
        following = number + 1
        if following < len(self.times) and self.times.is_break[following]:
            self._end_run()
            start = self.times.starts[following]
            if np.isfinite(start):
                self.known_until = max(self.known_until, float(start) - self._origin)
        late = MAX_LATE_SECONDS + max(0.0, self._pace.error)
        passed = float(self.times.due[number]) - self._origin - late
        self.known_until = max(self.known_until, passed)

    def _begin_run(self, layout: tuple[str, str, int], seconds: float) -> None:
        self._end_run()
        # Many frames at a time, because the cost is per call.
        self._fifo = AudioFifo()
        self._mixer = MonoMixer(self._sample_rate)
        self._layout = layout
        self._pace, self._stretcher = Pace(), Stretcher()
        self._run_drained = seconds
        self._write_at = round(seconds * self._sample_rate)

    def _end_run(self) -> None:
        if self._fifo is not None:
            self._drain(self._fifo.read())
            self._drain(None)
            self._write(self._stretcher.rest())
        self._fifo = self._mixer = None

    def _drain(self, frame: AudioFrame | None) -> None:
        assert self._mixer is not None
        assert self._layout is not None
        seconds = self._num_queued / self._layout[2]
        self._run_drained += seconds * self._pace.ratio
        for samples in self._mixer.flush() if frame is None else self._mixer.mix(frame):
            self._write(self._stretcher.stretch(samples, self._pace.ratio))
        self._num_queued = 0
        if self.times.is_followed:
            self._pace.follow(seconds)
        if self.times.is_trusted and self._pace.has_drifted():
            self.bridged.append(self._run_drained)

    def _write(self, samples: NDArray[np.int16]) -> None:
        if len(samples):
            self.runs.append((self._write_at, samples))
            self._write_at += len(samples)
            self.end = max(self.end, self._write_at / self._sample_rate)
            self.known_until = max(self.known_until, self._write_at / self._sample_rate)


class Pace:
    """How much slower than its samples the sound is played, so that its timestamps stay near.

    A controller with a proportional and an integral part, critically damped, as in a phase-locked
    loop: after a few seconds it has found out by how much two clocks differ.
    """

    def __init__(self) -> None:
        self.ratio = 1.0
        self.error = 0.0
        """Timestamp minus what the samples make one expect, in seconds."""
        self._is_active = False
        self._drift = 0.0
        self._seconds = 0.0
        self._moved = 0.0
        self._counted = 0.0

    def follow(self, seconds: float) -> None:
        """Sets the ratio for the next samples, after so many seconds of them."""
        self._moved += (self.ratio - 1) * seconds
        self._seconds += seconds
        if not self._is_active:
            if abs(self.error) <= HOLE_SECONDS:
                return
            self._is_active = True
            self._drift = self.error / self._seconds
        self._drift += FOLLOW_RATE**2 * self.error * seconds
        self._drift = float(np.clip(self._drift, -MAX_DRIFT, MAX_DRIFT))
        change = self._drift + 2 * FOLLOW_RATE * self.error
        self.ratio = 1 + float(np.clip(change, -MAX_DRIFT, MAX_DRIFT))

    def has_drifted(self) -> bool:
        """Whether timestamps and samples have moved apart by a hole since this said so before."""
        apart = self.error + self._moved
        if abs(apart - self._counted) <= HOLE_SECONDS:
            return False
        self._counted = apart
        return True


def _suffix_minima(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The least of each value and those after it."""
    known = np.where(np.isfinite(values), values, np.inf)
    return np.minimum.accumulate(known[::-1])[::-1]
