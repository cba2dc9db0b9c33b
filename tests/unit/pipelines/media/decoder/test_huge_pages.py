import platform
import subprocess
import sys

import pytest

from pipelines.media.decoder.huge_pages import _has_huge_pages
from tests.helpers.media import DECODE_SHORT, write_numbered


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not _has_huge_pages(), reason="no huge pages here"
)
def test_code_that_moves_to_huge_pages_runs_and_cannot_be_written(tmp_path):
    """In a process of its own, because the code stays moved."""
    program = f"""
import sys
from pipelines.media.decode import decode_segments
from pipelines.media.decoder import huge_pages

def decoded():
    return [
        (segment.frames.tobytes(), segment.waveform.tobytes())
        for segment in decode_segments(sys.argv[1], **{DECODE_SHORT!r})
    ]

def hot():
    return {{name for *_, name in huge_pages._mappings() if huge_pages.HOT_CODE.search(name)}}

before, files = decoded(), hot()
huge_pages.enlarge_code_pages()
assert decoded() == before and len(before) == 2
assert hot() == files  # what is no whole huge page stays
moved = [m for m in huge_pages._mappings() if not m[3] and "x" in m[2]]
assert moved and all("w" not in rights for _, _, rights, _ in moved), moved
assert all(ends % huge_pages.HUGE_PAGE == 0 for m in moved for ends in m[:2]), moved
"""
    clip = write_numbered(tmp_path / "clip.mp4", 50)
    done = subprocess.run(
        [sys.executable, "-c", program, str(clip)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
