"""Decodes the sound of a source into 16-bit mono at one rate.

Times are seconds on the clock of `decode.decode_segments`. Packets already have their presentation
times (`timeline`).
"""

import math
from typing import Any

import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.packet import Packet
from numpy.typing import NDArray

from pipelines.media.mixing import MonoMixer
from pipelines.media.sound_clock import HOLE_SECONDS
from pipelines.media.stretch import Stretcher
from pipelines.media.timeline import StreamTimeline

DRAIN_SAMPLES = 8192
"""Samples to resample at a time. Single frames and whole seconds both measured slower."""
MIN_NATIVE_SAMPLE_RATE = 100
"""Lowest plausible sample rate. With a lower one, a second of sound would become hours."""
STEP_SECONDS = 0.015
"""A faster drift of the timestamps from the samples means that a packet was lost or damaged."""
MAX_ERROR_SECONDS = 0.25
"""Sound that is further off its timestamp moves there at once."""
MAX_LATE_SECONDS = 2.0
"""Sound that the decoder has not output this long after its packet is lost."""
FOLLOW_RATE = 0.1
"""Gain of the controller, per second. A lower gain lags behind drift, a higher one is audible."""
MAX_DRIFT = 0.025
"""Largest change of the speed; a larger one would be audible."""


class AudioTrack:
    """Sound as 16-bit mono at one rate, in runs of samples without holes.

    After missing sound, a new run begins later. Where timestamps drift away slowly, the run
    continues, and is stretched to follow them if the picture does.
    """

    def __init__(
        self, stream: AudioStream, times: StreamTimeline, origin: float, sample_rate: int
    ) -> None:
        stream.codec_context.thread_count = 1
        self.stream = stream
        self.times = times
        self.runs: list[tuple[int, NDArray[np.int16]]] = []
        self.known_until = -math.inf
        """Time up to which the sound is complete."""
        self.end = 0.0
        self.start: float | None = None
        self.gaps: list[float] = []
        """Times where sound is missing and silence is inserted."""
        self.bridged: list[float] = []
        """Times where timestamps had drifted away and the sound was stretched."""
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
        """Decodes a packet, or flushes the decoder; returns the number of damaged frames."""
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
        """Adds the next decoded samples."""
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
        frame.pts = None  # the queue requires gapless timestamps
        self._fifo.write(frame)
        self._num_queued += frame.samples
        if self._num_queued >= DRAIN_SAMPLES:
            self._drain(self._fifo.read())

    def finish(self) -> None:
        """Flushes the last samples at the end of the source."""
        self._end_run()
        self.known_until = math.inf

    def take(self, first_sample: int, num_samples: int) -> NDArray[np.int16] | None:
        """Returns the samples of a segment, or None if less than half of them exist."""
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
        """Returns the time of the next samples if none are missing."""
        rate = self._layout[2] if self._layout else 1
        return self._run_drained + self._num_queued / rate * self._pace.ratio

    def _is_hole(self, error: float, seconds: float) -> bool:
        """Returns whether a run ends here, because sound is missing or the clock has leapt."""
        if self._break_at is not None and abs(seconds - self._break_at) <= abs(error):
            self._break_at = None
            return True
        step = abs(error - self._pace.error)
        is_off = abs(error) > HOLE_SECONDS and (error > 0 or self.times.is_trusted)
        is_lost = self.times.is_followed and abs(error) > MAX_ERROR_SECONDS
        if is_off and (step > STEP_SECONDS or is_lost):
            return True
        self._pace.error = error  # the samples before a hole do not follow it
        return False

    def _look_ahead(self, number: int) -> None:
        """Ends a run before a hole, so that the silence is known before the hole is over."""
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
        # Many frames at a time, because each call has a fixed cost.
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
    """The speed at which sound is played so that it stays close to its timestamps.

    A proportional-integral controller, critically damped, as in a phase-locked loop: it learns
    within a few seconds by how much two clocks differ.
    """

    def __init__(self) -> None:
        self.ratio = 1.0
        self.error = 0.0
        """Timestamp minus the time that follows from the samples, in seconds."""
        self._is_active = False
        self._drift = 0.0
        self._seconds = 0.0
        self._moved = 0.0
        self._counted = 0.0

    def follow(self, seconds: float) -> None:
        """Sets the ratio for the next samples, given the seconds since the last call."""
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
        """Returns whether timestamps and samples drifted apart by a hole since the last True."""
        apart = self.error + self._moved
        if abs(apart - self._counted) <= HOLE_SECONDS:
            return False
        self._counted = apart
        return True
