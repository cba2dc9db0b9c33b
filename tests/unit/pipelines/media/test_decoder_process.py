import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pipelines.media.container import DecodeError
from pipelines.media.decode import decode_segments
from pipelines.media.decoder_process import DecoderProcess, _SharedMemory
from tests.helpers.media import write_media, write_numbered

SETTINGS = {
    "segment_seconds": 1.0,
    "min_segment_seconds": 0.5,
    "frame_rate": 8.0,
    "short_side": 32,
    "sample_rate": 16_000,
}


@pytest.fixture
def decoder():
    process = DecoderProcess(max_memory_bytes=1_000_000_000, timeout_seconds=20.0)
    yield process
    process.close()


def children():
    """Processes that this one started and that still run."""
    return {
        int(pid)
        for thread in os.listdir("/proc/self/task")
        for pid in open(f"/proc/self/task/{thread}/children").read().split()
    }


def child_of(decoder, path):
    """Starts a file, and gives the process that decodes it and the segments."""
    before = children()
    segments = decoder.segments(str(path), **SETTINGS)
    next(segments)
    (pid,) = children() - before
    return pid, segments


def long_file(tmp_path):
    """A file of many segments, so that the decoder waits half-way."""
    frames = [np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)] * 1000
    return write_media(tmp_path / "long.avi", frames)


def assert_same_tensors(there, here):
    for one, other in zip(there, here, strict=True):
        assert np.array_equal(one.frames, other.frames)
        assert np.array_equal(one.waveform, other.waveform)


def test_the_child_gives_what_decoding_here_gives(decoder, tmp_path):
    path = write_numbered(tmp_path / "clip.mkv", 80)
    there = list(decoder.segments(str(path), **SETTINGS))
    here = list(decode_segments(str(path), **SETTINGS))
    assert len(there) == len(here) == 3
    assert_same_tensors(there, here)
    for one, other in zip(there, here, strict=True):
        assert (one.start_seconds, one.duration_seconds) == (
            other.start_seconds,
            other.duration_seconds,
        )
        assert one.info == other.info


def test_a_missing_stream_stays_missing(decoder, tmp_path):
    sound = write_media(tmp_path / "a.mkv", waveform=np.zeros(48_000, np.int16))
    picture = write_numbered(tmp_path / "b.mkv", 25, waveform=None)
    (one,) = decoder.segments(str(sound), **SETTINGS)
    (other,) = decoder.segments(str(picture), **SETTINGS)
    assert one.frames is None
    assert other.waveform is None


def test_one_child_serves_all_files(decoder, tmp_path):
    path = write_numbered(tmp_path / "clip.mp4", 50)
    pid, segments = child_of(decoder, path)
    list(segments)
    (tmp_path / "bad.mp4").write_text("no media")
    with pytest.raises(DecodeError, match="Invalid data"):
        list(decoder.segments(str(tmp_path / "bad.mp4"), **SETTINGS))
    before = children()
    list(decoder.segments(str(path), **SETTINGS))
    assert pid in children() == before


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGABRT"])
def test_a_child_that_dies_costs_one_file(decoder, tmp_path, name):
    path = long_file(tmp_path)
    pid, segments = child_of(decoder, path)
    os.kill(pid, getattr(signal, name))
    with pytest.raises(DecodeError, match=f"died of {name}") as caught:
        list(segments)
    assert caught.value.reason == "decoder_crashed"
    clip = write_numbered(tmp_path / "clip.mp4", 50)
    assert len(list(decoder.segments(str(clip), **SETTINGS))) == 2


def test_a_child_that_died_between_two_files_is_replaced(decoder, tmp_path):
    clip = write_numbered(tmp_path / "clip.mp4", 50)
    pid, segments = child_of(decoder, clip)
    list(segments)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert len(list(decoder.segments(str(clip), **SETTINGS))) == 2


def test_a_file_that_hangs_times_out(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    # Long enough for a process to start on a machine that has much else to do.
    decoder = DecoderProcess(max_memory_bytes=1_000_000_000, timeout_seconds=10.0)
    with pytest.raises(DecodeError, match=r"limits.max_decode_seconds \(10\)") as caught:
        list(decoder.segments(str(tmp_path / "pipe.mp4"), **SETTINGS))
    assert caught.value.reason == "decoder_timeout"
    clip = write_numbered(tmp_path / "clip.mp4", 50)
    assert len(list(decoder.segments(str(clip), **SETTINGS))) == 2
    decoder.close()


def test_a_file_that_needs_too_much_memory_is_named(tmp_path):
    path = write_media(
        tmp_path / "big.avi", [np.zeros((3000, 4000, 3), np.uint8)] * 30, codecs=("mpeg4", "")
    )
    decoder = DecoderProcess(max_memory_bytes=30_000_000, timeout_seconds=20.0)
    with pytest.raises(DecodeError) as caught:
        list(decoder.segments(str(path), **SETTINGS))
    assert caught.value.reason == "out_of_memory"
    decoder.close()


def test_leaving_a_file_early_leaves_no_process(tmp_path):
    decoder = DecoderProcess(max_memory_bytes=1_000_000_000, timeout_seconds=20.0)
    pid, segments = child_of(decoder, long_file(tmp_path))
    segments.close()
    assert pid not in children()


def test_the_child_ends_when_its_parent_is_killed(tmp_path):
    path = long_file(tmp_path)
    program = (
        "import sys; from pipelines.media.decoder_process import DecoderProcess\n"
        "decoder = DecoderProcess(max_memory_bytes=10**9, timeout_seconds=20.0)\n"
        f"segments = decoder.segments({str(path)!r}, **{SETTINGS!r})\n"
        "next(segments)\n"
        "print(decoder._child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}"):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the child outlived its parent")


def test_segments_of_growing_sizes_come_out_of_one_child(decoder, tmp_path):
    """The shared memory has room for the largest; odd sizes leave samples unaligned."""
    for size in (9, 33, 15):
        path = write_numbered(tmp_path / f"{size}.mkv", 50)
        settings = SETTINGS | {"short_side": size}
        there = list(decoder.segments(str(path), **settings))
        here = list(decode_segments(str(path), **settings))
        assert len(there) == len(here) == 2
        assert_same_tensors(there, here)


def test_a_segment_that_was_given_does_not_change(decoder, tmp_path):
    path = write_numbered(tmp_path / "clip.mkv", 80)
    segments = decoder.segments(str(path), **SETTINGS)
    first = next(segments)
    frames, waveform = first.frames.copy(), first.waveform.copy()
    list(segments)
    assert np.array_equal(first.frames, frames)
    assert np.array_equal(first.waveform, waveform)


def test_a_segment_too_large_for_the_memory_is_named():
    memory = _SharedMemory.new()
    with pytest.raises(DecodeError, match="a segment of") as caught:
        memory.reserve(1 << 62)
    assert caught.value.reason == "out_of_memory"
    memory.close()


def talking(monkeypatch, tmp_path, program):
    """A decoder whose child runs a program in place of ours."""
    package = tmp_path / "pipelines" / "media"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "decoder_process.py").write_text(
        "import json, os, sys, time\n"
        "sys.stdin.readline()\n"
        "def say(text):\n"
        "    os.write(1, len(text).to_bytes(4, 'big') + text.encode())\n"
        f"{program}\ntime.sleep(60)\n"
    )
    monkeypatch.setattr("pipelines.media.decoder_process.PACKAGES", tmp_path)
    return DecoderProcess(max_memory_bytes=1_000_000_000, timeout_seconds=10.0)


SEGMENT = {"start_seconds": 0, "duration_seconds": 1, "decode_errors": 0, "info": {}}


@pytest.mark.parametrize(
    "program",
    [
        "say('no JSON')",
        "say('[]')",
        "say('{}')",
        'say(\'{"error": "undecodable"}\')',
        f"say({json.dumps(SEGMENT | {'frames': [5, 5, 5, 3], 'samples': 0})!r})",
        f"say({json.dumps(SEGMENT | {'frames': [-5, 5, 5, -3], 'samples': 0})!r})",
        f"say({json.dumps(SEGMENT | {'frames': None, 'samples': -1})!r})",
        f"say({json.dumps(SEGMENT | {'frames': [1 << 50, 1, 1, 3], 'samples': 0})!r})",
        "os.write(1, b'\\xff\\xff\\xff\\xff')",
    ],
)
def test_a_child_that_talks_nonsense_costs_one_file(monkeypatch, tmp_path, program):
    decoder = talking(monkeypatch, tmp_path, program)
    before = children()
    with pytest.raises(DecodeError, match="nonsense") as caught:
        list(decoder.segments("any.mp4", **SETTINGS))
    assert caught.value.reason == "decoder_crashed"
    assert children() == before


def test_a_child_that_falls_silent_and_lives_on_is_ended_in_time(monkeypatch, tmp_path):
    decoder = talking(monkeypatch, tmp_path, "os.close(1)")
    decoder._timeout_seconds = 3.0
    before = children()
    with pytest.raises(DecodeError, match="closed its side"):
        list(decoder.segments("any.mp4", **SETTINGS))
    assert children() == before


def test_a_child_that_cannot_start_leaves_nothing_open(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    decoder = DecoderProcess(max_memory_bytes=1_000_000_000, timeout_seconds=20.0)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="No such file"):
        list(decoder.segments("any.mp4", **SETTINGS))
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux seals memory")
def test_shared_memory_cannot_be_taken_away():
    memory = _SharedMemory.new()
    memory.reserve(100)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.file, 10)
    memory.close()


def test_nothing_stays_open(tmp_path):
    path = write_numbered(tmp_path / "clip.mp4", 50)
    before = os.listdir("/proc/self/fd")
    decoder = DecoderProcess(max_memory_bytes=1_000_000_000, timeout_seconds=20.0)
    for _ in range(2):
        list(decoder.segments(str(path), **SETTINGS))
        decoder.close()
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1  # the selector
