import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from pipelines.media.container import DecodeError
from pipelines.media.decode import decode_segments
from pipelines.media.streams.encryption import is_scrambled
from pipelines.media.streams.selection import probe
from tests.helpers.media import DECODE, numbered_frame, tone, write_media, write_numbered

SETTINGS = DECODE | {"segment_seconds": 10.0, "min_segment_seconds": 1.1}
SECONDS = 3


def decode(path, **changes):
    return list(decode_segments(str(path), **(SETTINGS | changes)))


def reject(path, **changes):
    with pytest.raises(DecodeError) as caught:
        decode(path, **changes)
    return caught.value


def hertz(segment):
    spectrum = np.abs(np.fft.rfft(segment.waveform[4000:].astype(float)))
    return round(spectrum.argmax() * 16_000 / (len(segment.waveform) - 4000), -1)


def write_sounds(path, *sounds, num_frames=25 * SECONDS, codecs=None, defaults=()):
    """Writes numbered frames and several sounds, each of samples at 48 kHz."""
    video_codec, audio_codec = codecs or ("libx264", "aac")
    with av.open(str(path), "w") as container:
        video = container.add_stream(video_codec, rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        streams = [container.add_stream(audio_codec, rate=48_000, layout="mono") for _ in sounds]
        for number, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if number in defaults else 0
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for stream, samples in zip(streams, sounds, strict=True):
            resampler = av.AudioResampler(stream.format.name, "mono", 48_000, stream.frame_size)
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
    return path


def test_a_short_default_sound_does_not_win(tmp_path):
    short, whole = tone(0.3), tone(SECONDS, hertz=800.0)
    path = write_sounds(tmp_path / "clip.mkv", short, whole, defaults=[0])
    (segment,) = decode(path)
    assert hertz(segment) == 800
    assert segment.waveform[-1000:].any()


def test_silence_by_default_does_not_win(tmp_path):
    silence, whole = np.zeros(SECONDS * 48_000, np.int16), tone(SECONDS, hertz=800.0)
    path = write_sounds(tmp_path / "clip.mkv", silence, whole, defaults=[0])
    assert hertz(decode(path)[0]) == 800


def test_a_sound_whose_decoder_is_not_set_up_gives_way_to_another(tmp_path):
    path = write_sounds(
        tmp_path / "clip.mkv", tone(SECONDS), tone(SECONDS, hertz=800.0), codecs=("libx264", "flac")
    )
    data = bytearray(path.read_bytes())
    # The first sound's packets; FLAC frames begin with 14 bits of synchronization.
    with av.open(str(path)) as container:
        positions = [p.pos for p in container.demux(audio=0) if p.size]
    for at in positions:
        sync = data.index(b"\xff\xf8", at)
        data[sync : sync + 2] = b"\0\0"
    path.write_bytes(data)
    (segment,) = decode(path)
    assert hertz(segment) == 800
    assert segment.info.declares_sound
    assert segment.decode_errors == 0


def test_a_sound_that_gives_nothing_is_declared_and_missing(tmp_path):
    path = write_sounds(tmp_path / "clip.mkv", tone(SECONDS), codecs=("libx264", "flac"))
    data = path.read_bytes().replace(b"\xff\xf8", b"\0\0")
    path.write_bytes(data)
    (segment,) = decode(path)
    assert segment.waveform is None
    assert (segment.info.declares_picture, segment.info.declares_sound) == (True, True)
    assert segment.decode_errors > 0


def test_what_is_declared_is_said(tmp_path):
    silent = probe(str(write_numbered(tmp_path / "a.mp4", 50, waveform=None)))
    song = probe(str(write_media(tmp_path / "b.mkv", waveform=tone(2.0))))
    assert (silent.declares_picture, silent.declares_sound) == (True, False)
    assert (song.declares_picture, song.declares_sound) == (False, True)


ENCRYPTION = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "0123456789abcdef0123456789abcdef",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}


def test_encrypted_files_are_rejected_as_such(tmp_path):
    both = write_numbered(tmp_path / "both.mp4", 50, options=ENCRYPTION)
    sound = write_media(tmp_path / "sound.mp4", waveform=tone(2.0), options=ENCRYPTION)
    assert reject(both).reason == reject(sound).reason == "encrypted"
    assert "picture and sound" in reject(both).message
    assert "picture" not in reject(sound).message


def checksum(data):
    """Of the tables of a transport stream."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return struct.pack(">I", value)


def declare_sample_aes(path, types):
    """Gives streams of a transport stream the types that they have if they are encrypted."""
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 188):
        if data[at + 1] & 0x1F == 0x10 and data[at + 2] == 0 and data[at + 4 : at + 6] == b"\0\x02":
            (length,) = struct.unpack(">H", data[at + 6 : at + 8])
            stop = at + 8 + (length & 0xFFF)
            for clear, encrypted in types.items():
                position = data.index(clear + b"\xe1", at + 17, stop)
                data[position : position + 1] = encrypted
            data[stop - 4 : stop] = checksum(data[at + 5 : stop - 4])
    path.write_bytes(data)
    return path


def test_a_clear_picture_with_encrypted_sound_is_a_picture(tmp_path):
    path = write_numbered(tmp_path / "clip.ts", 50)
    (segment,) = decode(declare_sample_aes(path, {b"\x0f": b"\xcf"}))
    assert segment.frames is not None
    assert segment.waveform is None
    assert segment.info.declares_sound
    assert segment.info.audio_codec == "encrypted"
    declare_sample_aes(path, {b"\x1b": b"\xdb"})
    assert reject(path).reason == "encrypted"


@pytest.mark.parametrize("length", [188, 192, 204])
def test_scrambled_transport_streams_are_seen(tmp_path, length):
    path = write_numbered(tmp_path / "clip.ts", 50)
    packets = [path.read_bytes()[at : at + 188] for at in range(0, path.stat().st_size, 188)]

    def scramble(packet):
        pid = struct.unpack(">H", packet[1:3])[0] & 0x1FFF
        if not 0x100 <= pid < 0x1000:
            return packet
        return packet[:3] + bytes([packet[3] | 0x80]) + bytes(byte ^ 0x5A for byte in packet[4:])

    def encrypt(packet):
        payload = 5 + packet[4] if packet[3] & 0x20 else 4
        header = packet[:3] + bytes([packet[3] | 0x80]) + packet[4:payload]
        return header + rng.bytes(188 - payload)

    rng = np.random.default_rng(0)
    scrambled = [scramble(packet) for packet in packets]
    padding = bytes(length - 188)
    assert is_scrambled(b"".join(packet + padding for packet in scrambled))
    assert not is_scrambled(b"".join(packet + padding for packet in packets))
    assert not is_scrambled(b"")
    if length == 188:
        path.write_bytes(b"".join(scrambled))
        assert reject(path).reason == "encrypted"
        # Without a table of streams, FFmpeg finds nothing to open.
        path.write_bytes(b"".join(map(encrypt, packets)))
        assert reject(path).reason == "encrypted"


def scrambled(source, target, numbers, first=0.0):
    """Scrambles the packets of some streams from a share of a transport stream on."""
    rng = np.random.default_rng(0)
    packets = [source.read_bytes()[at : at + 188] for at in range(0, source.stat().st_size, 188)]
    for at in range(round(first * len(packets)), len(packets)):
        packet = packets[at]
        if struct.unpack(">H", packet[1:3])[0] & 0x1FFF in numbers:
            payload = 5 + packet[4] if packet[3] & 0x20 else 4
            header = packet[:3] + bytes([packet[3] | 0x80]) + packet[4:payload]
            packets[at] = header + rng.bytes(188 - payload)
    target.write_bytes(b"".join(packets))
    return target


@pytest.mark.parametrize("codecs", [("libx264", "aac"), ("mpeg2video", "mp2")])
def test_one_scrambled_stream_is_called_encrypted(tmp_path, codecs):
    clear = write_numbered(tmp_path / "clear.ts", 150, codecs=codecs)
    for number, (stream, other) in enumerate([("frames", "waveform"), ("waveform", "frames")]):
        path = scrambled(clear, tmp_path / "one.ts", {0x100 + number})
        for segment in decode(path):
            assert getattr(segment, stream) is None
            assert getattr(segment, other) is not None
            assert segment.info.declares_picture
            assert segment.info.declares_sound
            found = segment.info.video_codec, segment.info.audio_codec
            assert found[number] == "encrypted"
            assert found[1 - number] not in (None, "encrypted")
            assert segment.decode_errors == 0
        later = decode(scrambled(clear, tmp_path / "later.ts", {0x100 + number}, first=0.4))
        assert sum(segment.decode_errors for segment in later) == 1
    assert reject(scrambled(clear, tmp_path / "both.ts", {0x100, 0x101})).reason == "encrypted"
    assert sum(segment.decode_errors for segment in decode(clear)) == 0


def damage(path, share, start=0.2):
    """Overwrites a share of a transport stream's packets with noise, behind its beginning."""
    rng = np.random.default_rng(0)
    data = bytearray(path.read_bytes())
    num_packets = len(data) // 188
    for number in range(int(start * num_packets), num_packets):
        if rng.random() < share:
            at = number * 188
            data[at + 12 : at + 188] = rng.bytes(176)
    path.write_bytes(data)
    return path


def noisy(num_frames):
    rng = np.random.default_rng(1)
    return [rng.integers(0, 255, (96, 128, 3), np.uint8) for _ in range(num_frames)]


def test_too_much_damage_rejects_a_source(tmp_path):
    path = damage(write_media(tmp_path / "clip.ts", noisy(75), tone(3.0)), 0.4)
    error = reject(path)
    assert error.reason == "damaged"
    assert "limits.max_damaged_fraction (0.25)" in error.message
    segments = decode(path, max_damaged_fraction=1.0)
    assert sum(segment.decode_errors for segment in segments) > 10


def test_some_damage_is_kept_and_counted(tmp_path):
    path = damage(write_media(tmp_path / "clip.ts", noisy(75), tone(3.0)), 0.003)
    segments = decode(path)
    assert 0 < sum(segment.decode_errors for segment in segments) < 20
    assert reject(path, max_damaged_fraction=0.0).reason == "damaged"


def test_reasons_do_not_contradict_themselves(tmp_path):
    path = write_media(tmp_path / "sound.mkv", waveform=tone(3.0), codecs=("libx264", "flac"))
    data = path.read_bytes()
    first = data.index(b"\xff\xf8")
    path.write_bytes(data[: first + 2] + data[first + 2 :].replace(b"\xff\xf8", b"\0\0"))
    error = reject(path, max_damaged_fraction=1.0)
    assert error.reason == "undecodable"
    assert "of its 2.9" in error.message


def test_a_picture_that_begins_late_although_it_declares_key_pictures_begins_the_clip(tmp_path):
    path = tmp_path / "cut.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "msmpeg4", rate=20, options={"g": "20", "sc_threshold": "1000000000"}
        )
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        frames = [av.VideoFrame.from_ndarray(numbered_frame(n, (128, 96))) for n in range(60)]
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        packets[1].is_keyframe = True
        container.mux(packets[1:])
    (segment,) = decode(path, max_damaged_fraction=1.0)
    # 19 pictures without a key picture, and the stretch that they would have been
    assert (segment.start_seconds, segment.decode_errors) == (0.0, 20)
    assert segment.duration_seconds == pytest.approx(2.0, abs=0.13)


@pytest.mark.parametrize("name", ["clip.avif", "clip.gif", "clip.apng"])
def test_image_sequences_are_read_as_such(tmp_path, name):
    codec, pixels = {"avif": ("libsvtav1", "yuv420p"), "gif": ("gif", "rgb8")}.get(
        name[5:], ("apng", "rgb24")
    )
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, pixels
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, (128, 96)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (segment,) = decode(tmp_path / name, formats="all")
    assert segment.frames.shape[0] == pytest.approx(24, abs=1)
    assert (segment.frames[0] != segment.frames[-1]).any()
