"""The two streams of a source while it is decoded: frames at ticks, sound at samples.

Times are seconds on the clock of `media.decode_segments`. Both tracks keep what they have until it
is taken, and both forget what lies before the segment that was taken last.
"""

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

MAX_HOLD_SECONDS = 10.0
"""How long a frame stands for what is seen when no other follows."""
AUDIO_DRIFT_SECONDS = 0.03
"""Sound that is further from where its timestamp says is moved there."""
ROUNDING_TICKS = 0.02
"""Containers round timestamps, Matroska to a millisecond."""
SKIPPABLE_CODECS = frozenset({"h264", "hevc"})
TIMED_CONTAINERS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv"})
"""Containers that keep presentation timestamps; those that FFmpeg guesses (AVI) can be wrong."""
DRAIN_SAMPLES = 8192
"""Samples that are resampled at once (measured: cheaper than single frames, and than seconds)."""
MIN_NATIVE_SAMPLE_RATE = 100
"""Below it a header lies, and a second of sound would become hours."""


def native_rate(stream: VideoStream) -> float:
    """Frames per second as declared, 0 if unknown."""
    return float(stream.average_rate or stream.guessed_rate or 0)


class VideoTrack:
    """The picture, sampled once a tick, in the middle of it.

    The middle, because then nothing is seen more than half a tick too early or too late, and
    because rounded timestamps near the beginning of a tick change nothing.
    """

    def __init__(
        self,
        stream: VideoStream,
        origin: float,
        frame_rate: float,
        converter: PictureConverter,
    ) -> None:
        # One decoder a core and no threads inside is the cheapest in CPU seconds (measured).
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        self.stream = stream
        self.frames: list[tuple[int, NDArray[np.uint8]]] = []
        self.position = 0.0
        """Up to here it is known what is seen."""
        self.start: float | None = None
        self._origin = origin
        self._time_base = float(stream.time_base or 1)
        self._period = 1 / (native_rate(stream) or frame_rate)
        self._frame_rate = frame_rate
        self._converter = converter
        self._declared_aspects = _pixel_aspects(stream)
        self._held: VideoFrame | None = None
        self._next_tick = 0
        self._may_skip = (
            stream.codec_context.name in SKIPPABLE_CODECS
            and stream.container.format.name in TIMED_CONTAINERS
        )
        self._skip: Literal["DEFAULT", "NONREF"] = "DEFAULT"

    @property
    def orientation(self) -> Orientation:
        """How the last picture that was stored was laid upright."""
        return self._converter.orientation

    def decode(self, packet: "Packet[Any] | None") -> int:
        """Decodes a packet, or without one what the decoder still holds; counts damaged frames."""
        if packet is not None and self._may_skip:
            self._spare_decoder(packet)
        num_corrupt = 0
        for frame in self.stream.decode(packet):
            num_corrupt += frame.is_corrupt
            self.add(frame)
        return num_corrupt

    def add(self, frame: VideoFrame) -> None:
        """Takes the next frame; what was seen until then becomes known."""
        before, start = self._held, self.position
        if frame.pts is None:
            seconds = start + self._period if before else 0.0
        else:
            seconds = frame.pts * self._time_base - self._origin
        if before is not None:
            seconds = max(seconds, start)  # some streams step back
        elif self.start is None:
            self.start = seconds
        self._held, self.position = frame, seconds
        if before is not None:
            self._sample(before, start, min(seconds, start + MAX_HOLD_SECONDS))

    def finish(self) -> None:
        """Shows the last frame for as long as it lasts."""
        last, start = self._held, self.position
        if last is None:
            return
        duration = (last.duration or 0) * self._time_base
        if not 0 < duration <= MAX_HOLD_SECONDS:
            duration = min(self._period, MAX_HOLD_SECONDS)
        self._held, self.position = None, start + duration
        self._sample(last, start, start + duration)

    def _spare_decoder(self, packet: "Packet[Any]") -> None:
        """Lets the decoder drop a frame that no tick shows and no other frame needs.

        It saves a quarter of the decoding of usual H.264 (measured).
        """
        skip: Literal["DEFAULT", "NONREF"] = "DEFAULT"
        if packet.pts is not None and packet.duration:
            start = (packet.pts * self._time_base - self._origin) * self._frame_rate - 0.5
            end = start + packet.duration * self._time_base * self._frame_rate
            if _ceil(start - ROUNDING_TICKS) >= end + ROUNDING_TICKS:
                skip = "NONREF"
        if skip != self._skip:
            self.stream.codec_context.skip_frame = self._skip = skip

    def skip_to(self, tick: int) -> None:
        """Forgets what is before a tick."""
        self._next_tick = max(self._next_tick, tick)
        self.frames = [entry for entry in self.frames if entry[0] >= tick]

    def take(self, first_tick: int, num_ticks: int) -> NDArray[np.uint8] | None:
        """Gives the frames of a segment, None if less than half of it is there."""
        chosen = [entry for entry in self.frames if entry[0] < first_tick + num_ticks]
        self.skip_to(first_tick + num_ticks)
        if not chosen or 2 * len(chosen) < num_ticks:
            return None
        pictures = same_shape([pixels for _, pixels in chosen])
        clip = np.empty((num_ticks, *pictures[0].shape), np.uint8)
        at = 0
        for tick in range(num_ticks):
            # A gap shows the frame before it, a late start the first frame.
            while at + 1 < len(chosen) and chosen[at + 1][0] <= first_tick + tick:
                at += 1
            clip[tick] = pictures[at]
        return clip

    def _sample(self, frame: VideoFrame, start: float, end: float) -> None:
        first = max(self._next_tick, _ceil(start * self._frame_rate - 0.5))
        stop = _ceil(end * self._frame_rate - 0.5)
        if stop > first:
            pixels = self._converter.convert(frame, self._pixel_aspect())
            self.frames.extend((tick, pixels) for tick in range(first, stop))
            self._next_tick = stop

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


def _ceil(value: float) -> int:
    return int(-(-value // 1))


class AudioTrack:
    """The sound as 16-bit mono at one rate, each run of samples where its timestamp says."""

    def __init__(self, stream: AudioStream, origin: float, sample_rate: int) -> None:
        stream.codec_context.thread_count = 1
        self.stream = stream
        self.runs: list[tuple[int, NDArray[np.int16]]] = []
        self.position = 0.0
        """Up to here it is known what is heard."""
        self.start: float | None = None
        self._origin = origin
        self._time_base = float(stream.time_base or 1)
        self._sample_rate = sample_rate
        self._fifo: AudioFifo | None = None
        self._mixer: MonoMixer | None = None
        self._layout: tuple[str, str, int] | None = None
        self._run_start = 0.0
        self._run_input = 0
        self._run_drained = 0
        self._write_at = 0

    def decode(self, packet: "Packet[Any] | None") -> int:
        """Decodes a packet, or without one what the decoder still holds; counts damaged frames."""
        num_corrupt = 0
        for frame in self.stream.decode(packet):
            num_corrupt += frame.is_corrupt
            self.add(frame)
        return num_corrupt

    def add(self, frame: AudioFrame) -> None:
        """Takes the next samples."""
        if not frame.samples:
            return
        if frame.sample_rate < MIN_NATIVE_SAMPLE_RATE:
            raise ValueError(f"sample rate ({frame.sample_rate}) is absurd")
        layout = (frame.format.name, frame.layout.name, frame.sample_rate)
        expected = self._run_start + self._run_input / frame.sample_rate
        seconds = expected
        if frame.pts is not None:
            seconds = frame.pts * self._time_base - self._origin
        if self.start is None:
            self.start = seconds
        if layout != self._layout or abs(seconds - expected) > AUDIO_DRIFT_SECONDS:
            self._begin_run(layout, seconds)
        assert self._fifo is not None
        frame.pts = None  # the queue would insist on gapless timestamps
        self._fifo.write(frame)
        self._run_input += frame.samples
        if self._run_input - self._run_drained >= DRAIN_SAMPLES:
            self._run_drained = self._run_input
            self._drain(self._fifo.read())

    def finish(self) -> None:
        """Pushes out what is still in the queue and in the resampler."""
        if self._fifo is not None:
            self._drain(self._fifo.read())
            self._drain(None)
        self._fifo = self._mixer = self._layout = None

    def skip_to(self, sample: int) -> None:
        """Forgets what is before a sample."""
        self.runs = [run for run in self.runs if run[0] + len(run[1]) > sample]

    def take(self, first_sample: int, num_samples: int) -> NDArray[np.int16] | None:
        """Gives the samples of a segment, None if less than half of it is there."""
        waveform = np.zeros(num_samples, np.int16)
        num_there = 0
        for at, samples in self.runs:
            first, stop = max(at, first_sample), min(at + len(samples), first_sample + num_samples)
            if first < stop:
                waveform[first - first_sample : stop - first_sample] = samples[
                    first - at : stop - at
                ]
                num_there += stop - first
        self.skip_to(first_sample + num_samples)
        return waveform if num_there and 2 * num_there >= num_samples else None

    def _begin_run(self, layout: tuple[str, str, int], seconds: float) -> None:
        self.finish()
        # Many frames at a time, because the cost is per call.
        self._fifo = AudioFifo()
        self._mixer = MonoMixer(self._sample_rate)
        self._layout = layout
        self._run_start, self._run_input, self._run_drained = seconds, 0, 0
        self._write_at = round(seconds * self._sample_rate)

    def _drain(self, frame: AudioFrame | None) -> None:
        assert self._mixer is not None
        for samples in self._mixer.flush() if frame is None else self._mixer.mix(frame):
            self.runs.append((self._write_at, samples))
            self._write_at += len(samples)
        self.position = max(self.position, self._write_at / self._sample_rate)
