import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import av
import numpy as np
import pytest

from pipelines.media.container import DecodeError
from pipelines.media.decode import decode_segments
from pipelines.media.decoder.forked import Patience
from pipelines.media.decoder.process import DecoderProcess
from pipelines.media.decoder.shared_memory import SharedMemory
from tests.helpers.media import DECODE_SHORT, numbered_frame, write_media, write_numbered


@pytest.fixture
def decoder():
    process = DecoderProcess(max_memory_bytes=1_000_000_000, timeout_seconds=20.0)
    yield process
    process.close()


def children(pid="self"):
    """Processes that a process started and that still run."""
    return {
        int(child)
        for thread in os.listdir(f"/proc/{pid}/task")
        for child in open(f"/proc/{pid}/task/{thread}/children").read().split()
    }


def child_of(decoder, path):
    """Starts a file, and gives the process that decodes it and the segments."""
    segments = decoder.segments(str(path), **DECODE_SHORT)
    next(segments)
    return decoder._decoder.process, segments


def is_alive(pid):
    """Whether a process runs; one that has ended waits for its parent to ask how."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(pid):
    for _ in range(200):
        if not is_alive(pid):
            return
        time.sleep(0.05)
    raise AssertionError("it lives on")


OPEN_FILES = """
import json, os, sys
from pipelines.media.decoder.process import DecoderProcess
from tests.helpers.media import DECODE_SHORT

def links():
    files = {number: f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")}
    return {number: os.readlink(file) for number, file in files.items() if os.path.exists(file)}

SETUP
decoder = DecoderProcess(max_memory_bytes=1_000_000_000, timeout_seconds=20.0)
before, said = links(), ""
for _ in range(2):
    try:
        list(decoder.segments(sys.argv[1], **DECODE_SHORT))
    except OSError as error:
        said = str(error)
    decoder.close()
opened = [link for number, link in links().items() if before.get(number) != link]
print(json.dumps([said, opened]))
"""


def newly_open(setup, path):
    """Decodes a file twice; returns what was said and which files are open since.

    In a process of its own: threads of other tests open and close files at any time.
    """
    program = OPEN_FILES.replace("SETUP", setup)
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    said, opened = json.loads(done.stdout)
    return said, opened


def long_file(tmp_path):
    """A file of many segments, so that the decoder waits half-way."""
    frames = [np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)] * 1000
    return write_media(tmp_path / "long.avi", frames)


def assert_same_tensors(there, here):
    for one, other in zip(there, here, strict=True):
        assert np.array_equal(one.frames, other.frames)
        assert (one.waveform is None) == (other.waveform is None)
        assert one.waveform is None or np.array_equal(one.waveform, other.waveform)


def test_the_child_gives_what_decoding_here_gives(decoder, tmp_path):
    path = write_numbered(tmp_path / "clip.mkv", 80)
    there = list(decoder.segments(str(path), **DECODE_SHORT))
    here = list(decode_segments(str(path), **DECODE_SHORT))
    assert len(there) == len(here) == 3
    assert_same_tensors(there, here)
    for one, other in zip(there, here, strict=True):
        assert (one.start_seconds, one.duration_seconds) == (
            other.start_seconds,
            other.duration_seconds,
        )
        assert one.info == other.info


def test_a_stream_that_is_tried_first_needs_no_threads(decoder, tmp_path):
    """An image sequence has a still picture beside it, so both are tried."""
    path = tmp_path / "clip.avif"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libsvtav1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, (128, 96)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    there = list(decoder.segments(str(path), **DECODE_SHORT))
    here = list(decode_segments(str(path), **DECODE_SHORT))
    assert_same_tensors(there, here)
    assert [segment.decode_errors for segment in there] == [0, 0]


def test_a_missing_stream_stays_missing(decoder, tmp_path):
    sound = write_media(tmp_path / "a.mkv", waveform=np.zeros(48_000, np.int16))
    picture = write_numbered(tmp_path / "b.mkv", 25, waveform=None)
    (one,) = decoder.segments(str(sound), **DECODE_SHORT)
    (other,) = decoder.segments(str(picture), **DECODE_SHORT)
    assert one.frames is None
    assert other.waveform is None


def test_each_file_has_a_child_of_its_own_which_is_forked_ahead(decoder, tmp_path):
    path = write_numbered(tmp_path / "clip.mp4", 50)
    pids = []
    for _ in range(3):
        segments = decoder.segments(str(path), **DECODE_SHORT)
        next(segments)
        pids.append(decoder._decoder.process)
        ahead = decoder._next.process
        assert children(decoder._template.pid) == {pids[-1], ahead}
        assert len(list(segments)) == 1
        assert children(decoder._template.pid) == {ahead}
        assert not is_alive(pids[-1])
    assert len(set(pids)) == 3


def test_memory_is_handed_on(decoder, tmp_path):
    path = write_numbered(tmp_path / "clip.mp4", 50)
    used = []
    for _ in range(4):
        for _ in decoder.segments(str(path), **DECODE_SHORT):
            used.append(decoder._decoder.memory.file)
    assert len(set(used)) == 2


def test_bytes_are_decoded_as_a_file_is(decoder, tmp_path):
    path = write_numbered(tmp_path / "clip.mkv", 80)
    assert_same_tensors(
        list(decoder.segments(path.read_bytes(), **DECODE_SHORT)),
        list(decoder.segments(str(path), **DECODE_SHORT)),
    )


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGABRT"])
def test_a_child_that_dies_costs_one_file(decoder, tmp_path, name):
    path = long_file(tmp_path)
    pid, segments = child_of(decoder, path)
    os.kill(pid, getattr(signal, name))
    with pytest.raises(DecodeError, match=f"died of {name}") as caught:
        list(segments)
    assert caught.value.reason == "decoder_crashed"
    clip = write_numbered(tmp_path / "clip.mp4", 50)
    assert len(list(decoder.segments(str(clip), **DECODE_SHORT))) == 2


def test_a_child_that_died_between_two_files_is_replaced(decoder, tmp_path):
    clip = write_numbered(tmp_path / "clip.mp4", 50)
    list(decoder.segments(str(clip), **DECODE_SHORT))
    ahead = decoder._next.process
    os.kill(ahead, signal.SIGKILL)
    wait_for_end(ahead)
    assert len(list(decoder.segments(str(clip), **DECODE_SHORT))) == 2


@pytest.mark.parametrize("what", ["pipe", "folder", "device", "missing"])
def test_what_is_no_file_is_unreadable_and_never_waited_for(decoder, tmp_path, what):
    path = tmp_path / "clip.mp4"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(DecodeError) as caught:
        list(decoder.segments(str(path), **DECODE_SHORT))
    assert caught.value.reason == "unreadable"


def test_a_child_that_hangs_times_out_and_is_ended(tmp_path):
    decoder = DecoderProcess(max_memory_bytes=1_000_000_000, timeout_seconds=2.0)
    pid, segments = child_of(decoder, long_file(tmp_path))
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DecodeError, match=r"limits.max_decode_seconds \(2\)") as caught:
        list(segments)
    assert caught.value.reason == "decoder_timeout"
    assert not is_alive(pid)
    clip = write_numbered(tmp_path / "clip.mp4", 50)
    assert len(list(decoder.segments(str(clip), **DECODE_SHORT))) == 2
    decoder.close()


def test_a_child_that_answers_slowly_for_ever_is_ended(tmp_path):
    """Each answer comes in time, so only the whole says that something is wrong."""
    decoder = DecoderProcess(
        max_memory_bytes=1_000_000_000, timeout_seconds=1.0, timeout_ratio=0.001
    )
    path = long_file(tmp_path)
    pid, segments = child_of(decoder, path)

    def slowly():
        for _ in segments:
            os.kill(pid, signal.SIGSTOP)
            threading.Timer(0.3, os.kill, (pid, signal.SIGCONT)).start()

    with pytest.raises(DecodeError) as caught:
        slowly()
    assert caught.value.reason == "decoder_timeout"
    assert "limits.max_decode_ratio (0.001)" in caught.value.message
    assert not is_alive(pid)
    decoder.close()


def test_what_a_child_works_while_nobody_waits_counts(tmp_path):
    patience = Patience(1.0, 2.0)
    patience.check(20.9, 10.0, 1 << 20)
    with pytest.raises(DecodeError, match=r"10 s took 22 s"):
        patience.check(22.0, 10.0, 1 << 20)


def test_claimed_seconds_count_as_far_as_there_are_bytes_for_them():
    patience = Patience(60.0, 20.0)
    six_hours = 6 * 3600.0
    patience.check(60.0 + 20 * 99, six_hours, 100_000)
    with pytest.raises(DecodeError, match=r"100 s took 2100 s"):
        patience.check(2_100.0, six_hours, 100_000)
    # A slide that is on for an hour, in 20 KB, is decoded in seconds.
    patience.check(400.0, 3600.0, 20_000)


def test_a_file_that_needs_too_much_memory_is_named(tmp_path):
    path = write_media(
        tmp_path / "big.avi", [np.zeros((3000, 4000, 3), np.uint8)] * 30, codecs=("mpeg4", "")
    )
    decoder = DecoderProcess(max_memory_bytes=30_000_000, timeout_seconds=20.0)
    with pytest.raises(DecodeError) as caught:
        list(decoder.segments(str(path), **DECODE_SHORT))
    assert caught.value.reason == "out_of_memory"
    decoder.close()


def test_leaving_a_file_early_leaves_no_process(tmp_path):
    decoder = DecoderProcess(max_memory_bytes=1_000_000_000, timeout_seconds=20.0)
    before = children()
    pid, segments = child_of(decoder, long_file(tmp_path))
    segments.close()
    assert not is_alive(pid)
    decoder.close()
    assert children() == before


def test_a_program_that_died_is_replaced(decoder, tmp_path):
    """It is what decoders are forked from, and they end with it."""
    clip = write_numbered(tmp_path / "clip.mp4", 50)
    pid, segments = child_of(decoder, clip)
    list(segments)
    os.kill(decoder._template.pid, signal.SIGKILL)
    os.waitid(os.P_PID, decoder._template.pid, os.WEXITED | os.WNOWAIT)
    wait_for_end(pid)
    assert len(list(decoder.segments(str(clip), **DECODE_SHORT))) == 2


def test_a_process_that_was_forked_later_has_a_decoder_of_its_own(decoder, tmp_path):
    clip = write_numbered(tmp_path / "clip.mp4", 50)
    list(decoder.segments(str(clip), **DECODE_SHORT))
    forked = os.fork()
    if not forked:
        try:
            os._exit(len(list(decoder.segments(str(clip), **DECODE_SHORT))))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 2
    assert len(list(decoder.segments(str(clip), **DECODE_SHORT))) == 2


def test_the_child_ends_when_its_parent_is_killed(tmp_path):
    path = long_file(tmp_path)
    program = (
        "import sys; from pipelines.media.decoder.process import DecoderProcess\n"
        "decoder = DecoderProcess(max_memory_bytes=10**9, timeout_seconds=20.0)\n"
        f"segments = decoder.segments({str(path)!r}, **{DECODE_SHORT!r})\n"
        "next(segments)\n"
        "print(decoder._template.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    pids = set()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        pids.add(int(parent.stdout.readline()))
        pids |= children(*pids)
        parent.kill()
    assert len(pids) == 3
    for _ in range(100):
        if not any(map(is_alive, pids)):
            return
        time.sleep(0.1)
    for pid in filter(is_alive, pids):
        os.kill(pid, signal.SIGKILL)
    raise AssertionError("the child outlived its parent")


def test_segments_of_growing_sizes_come_out_of_one_child(decoder, tmp_path):
    """The shared memory has room for the largest; odd sizes leave samples unaligned."""
    for size in (9, 33, 15):
        path = write_numbered(tmp_path / f"{size}.mkv", 50)
        settings = DECODE_SHORT | {"short_side": size}
        there = list(decoder.segments(str(path), **settings))
        here = list(decode_segments(str(path), **settings))
        assert len(there) == len(here) == 2
        assert_same_tensors(there, here)


def test_a_segment_that_was_given_does_not_change(decoder, tmp_path):
    path = write_numbered(tmp_path / "clip.mkv", 80)
    segments = decoder.segments(str(path), **DECODE_SHORT)
    first = next(segments)
    frames, waveform = first.frames.copy(), first.waveform.copy()
    list(segments)
    assert np.array_equal(first.frames, frames)
    assert np.array_equal(first.waveform, waveform)


def test_a_file_that_asks_for_larger_segments_gets_memory_for_them(decoder, tmp_path):
    path = write_numbered(tmp_path / "clip.mkv", 80)
    for settings in (DECODE_SHORT, DECODE_SHORT | {"segment_seconds": 3.0, "short_side": 40}):
        there = list(decoder.segments(str(path), **settings))
        assert_same_tensors(there, list(decode_segments(str(path), **settings)))


def test_a_segment_too_large_for_the_memory_is_named():
    memory = SharedMemory.new(1000)
    with pytest.raises(ValueError, match="a segment of"):
        memory.arrays((10, 10, 10, 3), 0)
    memory.close()


@pytest.mark.parametrize("program", ["/no/such/python", "/bin/false"])
def test_a_child_that_cannot_start_is_named_and_leaves_nothing_open(tmp_path, program):
    clip = write_numbered(tmp_path / "clip.mp4", 50)
    said, opened = newly_open(f"sys.executable = {program!r}", clip)
    assert re.search("No such file|the decoder does not start: it exited with", said)
    assert opened == []


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux seals memory")
def test_shared_memory_cannot_be_taken_away():
    memory = SharedMemory.new(100)
    for size in (10, 1000):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.file, size)
    memory.close()


def test_nothing_stays_open(tmp_path):
    assert newly_open("", write_numbered(tmp_path / "clip.mp4", 50)) == ("", [])
