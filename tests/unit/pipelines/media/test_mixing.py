import av
import numpy as np
import pytest

from pipelines.media.decode import decode_segments
from pipelines.media.mixing import MonoMixer, mixing_weights
from tests.helpers.media import DECODE

RATE = 48_000
TIME = np.arange(RATE) / RATE
SINE = (0.5 * np.sin(2 * np.pi * 440 * TIME)).astype(np.float32)
OTHER = (0.3 * np.sin(2 * np.pi * 1000 * TIME)).astype(np.float32)
NOTHING = np.zeros_like(SINE)


def frames(channels, layout, sample_format="flt", sample_rate=RATE):
    """The channels, (channel, time), as frames of a thousand samples."""
    converter = av.AudioResampler(format=sample_format, layout=layout, rate=sample_rate)
    for start in range(0, channels.shape[1], 1000):
        packed = np.ascontiguousarray(channels[:, start : start + 1000].T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate = sample_rate
        yield from converter.resample(frame)


def mixed(*channels, layout, **how):
    mixer = MonoMixer(16_000)
    parts = [
        part for frame in frames(np.stack(channels), layout, **how) for part in mixer.mix(frame)
    ]
    return np.concatenate([*parts, *mixer.flush()])


def amplitude(samples, hertz=440):
    """Of a sine of this frequency in the samples, full scale being 1."""
    spectrum = np.abs(np.fft.rfft(samples / 32768 * np.hanning(len(samples)))) * 4 / len(samples)
    at = round(hertz * len(samples) / 16_000)
    return spectrum[at - 1 : at + 2].max()


def test_a_known_layout_is_mixed_as_ffmpeg_does():
    mixer = av.AudioResampler(format="s16", layout="mono", rate=16_000)
    plain = [p for f in frames(np.stack([SINE, OTHER]), "stereo") for p in mixer.resample(f)]
    plain += mixer.resample(None)
    expected = np.concatenate([part.to_ndarray()[0] for part in plain])
    assert np.array_equal(mixed(SINE, OTHER, layout="stereo"), expected)


@pytest.mark.parametrize("num_orders", [1, 2, 3])
def test_an_ambisonic_field_gives_its_first_channel(num_orders):
    directions = [SINE * (-1) ** i for i in range((num_orders + 1) ** 2 - 1)]
    samples = mixed(OTHER, *directions, layout=f"ambisonic {num_orders}")
    assert amplitude(samples, 1000) == pytest.approx(0.3, rel=0.02)
    assert amplitude(samples, 440) < 0.001


@pytest.mark.parametrize(
    "sample_format", ["flt", "fltp", "s16", "s16p", "s32p", "dbl", "u8", "s64"]
)
def test_channels_without_a_layout_are_averaged(sample_format):
    samples = mixed(*[SINE] * 9, layout="9 channels", sample_format=sample_format)
    assert len(samples) == pytest.approx(16_000, abs=2)
    assert amplitude(samples) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(
    "layout", ["7 channels", "9 channels", "12 channels", "63 channels", "cube"]
)
def test_sound_in_any_one_channel_is_heard(layout):
    num_channels = av.AudioLayout(layout).nb_channels
    for number in range(num_channels):
        channels = [NOTHING] * num_channels
        channels[number] = SINE
        assert amplitude(mixed(*channels, layout=layout)) > 0.5 / 80


@pytest.mark.parametrize("layout", ["stereo", "2 channels"])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_opposite_phases_give_one_channel(layout, noise):
    hiss = noise * np.random.default_rng(0).standard_normal((2, RATE)).astype(np.float32)
    samples = mixed(SINE + hiss[0], -SINE + hiss[1], layout=layout)
    assert len(samples) == pytest.approx(16_000, abs=2)
    assert amplitude(samples) == pytest.approx(0.5, rel=0.02)


def test_the_mix_comes_back_when_channels_agree():
    left = np.tile(SINE, 6)
    right = np.concatenate([SINE, SINE, -SINE, -SINE, SINE, SINE])
    samples = mixed(left, right, layout="stereo")
    assert len(samples) == pytest.approx(96_000, abs=4)
    for second in (0, 1, 3, 4, 5):  # after a second it is sure that they disagree
        part = samples[second * 16_000 + 1000 : (second + 1) * 16_000 - 1000]
        assert amplitude(part) == pytest.approx(0.5, rel=0.05)


def test_a_moment_out_of_phase_changes_nothing():
    right = SINE.copy()
    right[20_000:26_000] *= -1
    samples = mixed(SINE, right, layout="stereo")
    assert np.abs(samples[7_000:8_300]).max() < 100


def test_surround_with_opposite_rear_keeps_its_front():
    front = mixed(SINE, SINE, OTHER, NOTHING, SINE, -SINE, layout="5.1")
    assert amplitude(front, 440) > 0.1
    assert amplitude(front, 1000) > 0.05
    rear = mixed(*[NOTHING] * 4, SINE, -SINE, layout="5.1")
    assert amplitude(rear) == pytest.approx(0.5, rel=0.02)


def test_independent_channels_are_mixed():
    noise = 0.2 * np.random.default_rng(1).standard_normal((2, RATE)).astype(np.float32)
    assert mixed(*noise, layout="stereo").std() < 0.75 * 0.2 * 32768 / np.sqrt(2)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_sound_that_is_no_number_ends_nothing(value):
    broken = SINE.copy()
    broken[20_000:21_000] = value
    samples = mixed(broken, -SINE, layout="stereo")
    assert len(samples) == pytest.approx(16_000, abs=4)
    assert amplitude(samples[-5000:]) > 0.2


def test_a_layout_that_nobody_knows_is_averaged():
    weights, is_known = mixing_weights(av.AudioLayout("9 channels"))
    assert not is_known
    assert weights == pytest.approx(np.full(9, 1 / 9))
    weights, is_known = mixing_weights(av.AudioLayout("5.1"))
    assert is_known
    assert weights[2] > weights[0] > weights[4] > weights[3] == 0


@pytest.mark.parametrize("sample_rate", [8_000, 44_100, 96_000, 192_000])
def test_any_rate_is_decoded(tmp_path, sample_rate):
    path = tmp_path / "sound.wav"
    time = np.arange(2 * sample_rate) / sample_rate
    sine = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=sample_rate, layout="stereo")
        for frame in frames(np.stack([sine, -sine]), "stereo", sample_rate=sample_rate):
            frame.pts = None
            container.mux(stream.encode(frame))
    (segment,) = decode_segments(str(path), **DECODE)
    assert amplitude(segment.waveform) == pytest.approx(0.5, rel=0.02)
