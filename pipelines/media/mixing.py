r"""Sound of any number of channels as one channel, at the sample rate wanted, 16-bit.

FFmpeg's mixer does it where it knows where the loudspeakers stand, by weights `w` that are those of
a listener in the middle. Two things it does not do. It refuses layouts that it does not know, such
as ambisonics or nine channels: then the first channel of an ambisonic field is its sound from all
around, and other channels are averaged. And a mix can cancel what its channels hold, as in

    left        /\/\/\            mix        ------
    right       \/\/\/

where a cable is wired the wrong way round. Whether it does is seen by its power: channels that
have nothing to do with each other give one of `sum_i w_i^2 P_i` where `P_i` are the powers of the
channels, and a mix far below that has lost them. So has a silent mix of channels that are not, all
of which have no weight. Then one channel is heard, the first of the loudest, until the mix is back.
"""

from typing import Any

import numpy as np
from av.audio.format import AudioFormat
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.resampler import AudioResampler
from av.error import FFmpegError
from numpy.typing import NDArray

CANCELS_BELOW = 0.1
"""Share of the expected power below which a mix has lost its channels. For stereo that is a
correlation of -0.9: films and recordings of a room stay above it for all but moments, and lossy
codecs leave an inverted channel far below it."""
AGREES_ABOVE = 0.5
"""Share of the expected power above which the mix is heard again."""
HALF_LIFE_SECONDS = 0.17
"""The share is averaged over the past with weights that halve in this time: a moment of the music
that is out of phase is no reason to change what is heard."""
SILENT_POWER = 1e-8
"""Of full scale: 80 dB below it."""
AS_LOUD_AS = 0.8
"""Channels with this share of the loudest one's power are as loud as it is."""

MAX_ANSWERS = 64
"""Layouts whose weights are kept; usual files have one of five."""

Samples = NDArray[np.int16]
Channels = NDArray[np.float32]

_answers: dict[str, tuple[Channels, bool]] = {}


class MonoMixer:
    """Mixes and resamples the frames of one format, layout and rate, in their order."""

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._resampler: AudioResampler | None = None
        self._unpacker: AudioResampler | None = None
        self._weights: Channels | None = None
        self._is_known = True
        self._channel: int | None = None
        """The one that is heard instead of the mix."""
        self._share: float | None = None

    def mix(self, frame: AudioFrame) -> list[Samples]:
        """Takes samples; what comes out can lag behind."""
        if self._weights is None:
            self._weights, self._is_known = mixing_weights(frame.layout)
        if self._is_known and len(self._weights) == 1:
            return self._resample(frame)
        channels = self._unpack(frame)
        channel = self._lost_to(channels, frame.sample_rate)
        mixed: list[Samples] = []
        if channel != self._channel and self._is_known:
            # What is heard comes in another format now.
            mixed = self.flush()
        self._channel = channel
        if channel is None and self._is_known:
            return mixed + self._resample(frame)
        heard = channels @ self._weights if channel is None else channels[:, channel]
        return mixed + self._resample(_mono(heard, frame.sample_rate))

    def flush(self) -> list[Samples]:
        """Gives what still lies in the resampler."""
        mixed = self._resample(None) if self._resampler is not None else []
        self._resampler = None
        return mixed

    def _resample(self, frame: AudioFrame | None) -> list[Samples]:
        if self._resampler is None:
            self._resampler = AudioResampler(format="s16", layout="mono", rate=self._sample_rate)
        return [resampled.to_ndarray()[0] for resampled in self._resampler.resample(frame)]

    def _unpack(self, frame: AudioFrame) -> Channels:
        """The samples as (time, channel)."""
        # Not by `to_ndarray` of the frame itself: PyAV dies on arrays of eight planar channels.
        if self._unpacker is None:
            self._unpacker = AudioResampler(
                format="flt", layout=frame.layout, rate=frame.sample_rate
            )
        packed = [part.to_ndarray()[0] for part in self._unpacker.resample(frame)]
        return np.concatenate([*packed, np.empty(0, np.float32)]).reshape(
            -1, frame.layout.nb_channels
        )

    def _lost_to(self, channels: Channels, sample_rate: int) -> int | None:
        """The channel to be heard instead of the mix, None for the mix."""
        assert self._weights is not None
        if not len(channels):
            return self._channel
        with np.errstate(all="ignore"):  # floating-point sound can hold anything
            products = channels.T @ channels / len(channels)
            power = products.diagonal()
            mixed = float(self._weights @ products @ self._weights)
            expected = float(power @ np.square(self._weights))
            loudest = float(power.max())
        if not 100 * SILENT_POWER < loudest < np.inf:
            return self._channel
        share = mixed / expected if mixed > SILENT_POWER else 0.0
        if self._share is not None:
            past = 0.5 ** (len(channels) / sample_rate / HALF_LIFE_SECONDS)
            share = past * self._share + (1 - past) * share
        self._share = share
        if share < CANCELS_BELOW and self._channel is None:
            return int(np.argmax(power >= AS_LOUD_AS * loudest))
        return None if share > AGREES_ABOVE else self._channel


def mixing_weights(layout: AudioLayout) -> tuple[Channels, bool]:
    """How much of each channel is in the mix, and whether FFmpeg's mixer knows the layout.

    Answers are kept, by what FFmpeg calls the layout, because it takes a millisecond to ask.
    """
    answer = _answers.get(layout.name)
    if answer is None:
        if len(_answers) >= MAX_ANSWERS:
            _answers.clear()
        answer = _answers[layout.name] = _mixing_weights(layout)
    return answer


def _mixing_weights(layout: AudioLayout) -> tuple[Channels, bool]:
    num_channels = layout.nb_channels
    if layout.name.startswith("ambisonic"):
        # FFmpeg's order and norm (ACN, SN3D) begin with the part that has no direction.
        return np.eye(1, num_channels, dtype=np.float32)[0], False
    try:
        weights = _known_weights(layout)
    except (FFmpegError, ValueError):
        weights = np.zeros(num_channels, np.float32)
    if len(weights) == num_channels and weights.any():
        return weights, True
    return np.full(num_channels, 1 / num_channels, np.float32), False


def _known_weights(layout: AudioLayout) -> Channels:
    """Asks the mixer: sample i is in channel i alone, and comes out with its weight."""
    each = np.eye(layout.nb_channels, dtype=np.float32).reshape(1, -1)
    frame: Any = AudioFrame.from_ndarray(each, format="flt", layout=layout)
    frame.sample_rate = 48_000
    mixer = AudioResampler(format=AudioFormat("flt"), layout="mono", rate=48_000)
    return np.concatenate([part.to_ndarray()[0] for part in mixer.resample(frame)])


def _mono(samples: Channels, sample_rate: int) -> AudioFrame:
    frame = AudioFrame.from_ndarray(
        np.ascontiguousarray(samples, np.float32)[None], format="flt", layout="mono"
    )
    frame.sample_rate = sample_rate
    return frame
