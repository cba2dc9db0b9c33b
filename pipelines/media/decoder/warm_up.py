"""Prepares the process from which decoders are forked, so that each decoder starts cheaply.

A forked process shares the memory of its parent until it writes: then the kernel copies page after
page, 4 KB in 3 us (measured). What it computes is lost when it ends. So the parent loads, links and
tries out all libraries first, on media that it makes itself.
"""

import gc
import importlib
import io
import json
import os
import pkgutil
from typing import Any

import av
import numpy as np
from av.audio.layout import AudioLayout
from av.error import FFmpegError

from pipelines.media.container import DecodeError
from pipelines.media.decode import decode_segments
from pipelines.media.decoder.huge_pages import enlarge_code_pages
from pipelines.media.decoder.messages import segment_header
from pipelines.media.formats import COMMON_CODECS
from pipelines.media.mixing import mixing_weights

USUAL_LAYOUTS = ("mono", "stereo", "2.1", "3.0", "quad", "4.0", "5.0", "5.1", "5.1(side)", "7.1")
"""Channel layouts whose mixing weights are computed ahead."""
ENVIRONMENT = {
    # Threads of NumPy do not survive a fork.
    **{"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    # Otherwise each decoder resolves the functions of FFmpeg that it calls.
    "LD_BIND_NOW": "1",
    # New memory comes in pages of 2 MB, which costs a tenth, and freed memory is kept for the next
    # frame.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824"
    ":glibc.malloc.trim_threshold=1073741824:glibc.malloc.top_pad=16777216",
}
"""Environment variables of the process."""
_TRIAL: dict[str, Any] = {
    "segment_seconds": 1.0,
    "min_segment_seconds": 0.1,
    "frame_rate": 8.0,
    "short_side": 16,
    "sample_rate": 16_000,
}


def warm_up() -> None:
    """Prepares this process, which has one thread before and after."""
    _load_all()
    _open_codecs()
    _try_out()
    for name in USUAL_LAYOUTS:
        mixing_weights(AudioLayout(name))
    enlarge_code_pages()
    gc.collect()
    gc.freeze()  # the collector would write to all objects, so that their pages are copied


def _load_all() -> None:
    """Loads the modules of PyAV, because a confined process can open no file."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith(("__main__", "datasets")):
            importlib.import_module(module.name)


def _open_codecs() -> None:
    """Opens the common decoders once, so that their static tables are filled."""
    for name in sorted(COMMON_CODECS):
        try:
            codec = av.CodecContext.create(name, "r")
            codec.thread_count = 1
            codec.open()
        except (FFmpegError, ValueError):  # not built in, or it needs the header of a file
            continue


def _try_out() -> None:
    """Decodes a short clip, so that caches are filled before decoders are forked."""
    file = io.BytesIO()
    try:
        with av.open(file, "w", "matroska") as container:
            video = container.add_stream("mpeg4", 25)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            audio = container.add_stream("pcm_s16le", 48_000, layout="mono")
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
            for number in range(25):
                picture.pts = number
                container.mux(video.encode(picture))
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), "s16", "mono")
            sound.sample_rate = 48_000
            container.mux(audio.encode(sound))
            container.mux(video.encode(None))
            container.mux(audio.encode(None))
    except (FFmpegError, ValueError):  # an FFmpeg without these encoders
        file = io.BytesIO(b"RIFF")
    descriptor = os.memfd_create("trial") if hasattr(os, "memfd_create") else None
    source: int | io.BytesIO = file if descriptor is None else descriptor
    if descriptor is not None:
        os.write(descriptor, file.getvalue())
    try:
        for segment in decode_segments(source, **_TRIAL):
            json.loads(json.dumps(segment_header(segment)))
    except DecodeError:
        pass
    if descriptor is not None:
        os.close(descriptor)
