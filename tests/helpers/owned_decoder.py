"""A decoder in the hands of its files: it runs them as Python, instead of decoding them.

A file that does not begin with `# attack` is decoded as usual.
"""

import os
import sys
from types import FrameType

from pipelines.media.decode import decode_segments
from pipelines.media.decoder import child


def attack(file: int, **settings):
    """What is run for a file; `channel` and `memory` are the decoder's own."""
    program = os.pread(file, 100_000, 0)
    if not program.startswith(b"# attack"):
        yield from decode_segments(file, **settings)
        return
    frame: FrameType | None = sys._getframe()
    while frame is not None and "memory" not in frame.f_locals:
        frame = frame.f_back
    names = {"file": file, "child": child, **(frame.f_locals if frame else {})}
    exec(compile(program, "attack", "exec"), names)
    yield from names.get("segments", ())


if __name__ == "__main__":
    child.decode_segments = attack
    child.main()
