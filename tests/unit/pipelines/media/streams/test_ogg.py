import io

import pytest

from pipelines.media.streams import ogg
from pipelines.media.streams.ogg import count_damaged_pages
from tests.helpers.timed_scenes import write_scene


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of a sound of ten seconds."""
    path = write_scene(tmp_path_factory.mktemp("ogg") / "tone.ogg", 0, 10, codecs=("", "libopus"))
    data = path.read_bytes()
    return [b"OggS\0" + rest for rest in data.split(b"OggS\0")[1:]]


@pytest.fixture(autouse=True, params=[100, 1 << 20])
def chunk_bytes(request, monkeypatch):
    """Pages lie across the border of what is read at a time, or all fit into it."""
    monkeypatch.setattr(ogg, "_CHUNK_BYTES", request.param)


def count(pages):
    return count_damaged_pages(io.BytesIO(b"".join(pages)))


def changed(page, at):
    return page[:at] + bytes([page[at] ^ 1]) + page[at + 1 :]


def test_intact_pages_are_no_damage(pages):
    assert len(pages) > 8
    assert count(pages) == count(pages[3:]) == count([]) == count([b"no page at all"]) == 0
    assert count([*pages[:-1], pages[-1][:-9]]) == count([*pages, b"junk"]) == 0


@pytest.mark.parametrize("at", [0, 3, 6, 23, 30, -1])
def test_each_damaged_page_counts_once(pages, at):
    for number in (2, 5):
        assert count([*pages[:number], changed(pages[number], at), *pages[number + 1 :]]) == 1
    assert (
        count(
            [changed(page, at) if number in (2, 5) else page for number, page in enumerate(pages)]
        )
        == 2
    )


def test_bytes_that_were_lost_or_inserted_count(pages):
    assert count([*pages[:3], pages[3][:200], *pages[4:]]) == 1
    assert count([*pages[:3], b"inserted", *pages[3:]]) == 1
