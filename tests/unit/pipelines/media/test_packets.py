import re

import numpy as np
import pytest

from pipelines.media.container import open_source
from pipelines.media.packets import scan_packets
from tests.helpers.media import write_numbered
from tests.helpers.timed_scenes import write_scene


def scan(path, **how):
    with open_source(str(path)) as container:
        return scan_packets(container, [*container.streams.video, *container.streams.audio], **how)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_every_packet_is_listed_with_its_times(tmp_path, suffix):
    path = write_numbered(tmp_path / f"clip{suffix}", 50, video_options={"bf": "2", "crf": "12"})
    found = scan(path)
    video, audio = found.tables[0], found.tables[1]
    assert len(video) == 50
    assert np.diff(np.sort(video.pts)) == pytest.approx(np.full(49, 0.04), abs=0.002)
    assert video.is_key[0]
    assert not video.is_key.all()
    assert audio.pts[-1] - audio.pts[0] == pytest.approx(2.0, abs=0.05)
    order = np.concatenate([video.order, audio.order])
    assert sorted(order) == list(range(len(order)))
    assert not found.errors


def test_packets_of_a_short_source_are_held_in_order(tmp_path):
    path = write_numbered(tmp_path / "clip.mkv", 50)
    found = scan(path)
    sizes = np.empty(len(found.held), int)
    for table in found.tables.values():
        sizes[table.order] = table.size
    assert [packet.size for packet in found.held] == list(sizes)
    limited = scan(path, max_held_bytes=5_000)
    assert limited.held is None
    assert len(limited.tables[0]) == len(found.tables[0])


def test_a_file_that_breaks_off_gives_what_was_there(tmp_path):
    path = write_numbered(tmp_path / "clip.ts", 50)
    path.write_bytes(path.read_bytes()[:20_000])
    assert 0 < len(scan(path).tables[0]) < 50


@pytest.mark.parametrize("suffix", [".mkv", ".flv"])
def test_an_end_that_the_header_promises_is_missed(tmp_path, suffix):
    path = write_scene(tmp_path / f"clip{suffix}", 0, 10)
    assert scan(path).errors == []
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    (error,) = scan(path).errors
    assert re.fullmatch(r"it declares 10\.\d\d s and ends after [5-7]\.\d\d s", str(error))
