"""Detects pictures that are stored with decoding times instead of presentation times.

Some recorders copy decoding times. If pictures are reordered, they would be shown at wrong times:

    decoded     I0 P2 B1 P4 B3
    time         0  1  2  3  4       of packets, so B1 would be on after P2
"""

import numpy as np
from av.error import FFmpegError
from av.video.stream import VideoStream

from pipelines.media.container import MediaInput, open_source
from pipelines.media.formats import Formats
from pipelines.media.packets import PacketTable

TRIED_PACKETS = 40
"""Packets to decode: more than a decoder holds, and enough to meet a reordered picture."""
REORDERING_CODECS = frozenset({"h264", "hevc", "mpeg4"})
"""Codecs to try. Containers of MPEG-1 and MPEG-2 keep both times."""


def lacks_presentation_times(
    source: MediaInput,
    formats: Formats,
    stream: VideoStream,
    table: PacketTable,
    *,
    probes_all: bool = False,
) -> bool:
    """Returns whether frames leave the decoder in another order than their times tell.

    Only tries streams whose times never step back, although their codec may reorder.

    Args:
        source: Opened again for the trial.
        formats: Which containers and codecs are allowed.
        stream: The picture.
        table: Its packets.
        probes_all: As the source was opened.
    """
    may_reorder = stream.codec_context.name in REORDERING_CODECS and bool(
        stream.codec_context.has_b_frames
    )
    steps = np.diff(table.pts)
    if not may_reorder or len(steps) < 2 or not (steps > 0).all() or table.is_discarded.any():
        return False
    with open_source(source, formats, probes_all=probes_all) as container:
        trial = container.streams[stream.index]
        assert isinstance(trial, VideoStream)
        trial.thread_type = "NONE"
        trial.codec_context.thread_count = 1  # a confined process can start no threads
        latest = None
        try:
            for number, packet in enumerate(container.demux(trial)):
                for frame in trial.decode(packet):
                    if latest is not None and frame.pts is not None and frame.pts < latest:
                        return True
                    latest = frame.pts
                if number >= TRIED_PACKETS:
                    break
        except (FFmpegError, IndexError, ValueError):  # see `packets.read_packets`
            pass
    return False
