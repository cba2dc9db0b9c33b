"""A bucket of a server that speaks S3 (moto), in a process of its own on this machine.

The server copies a whole object for each range that is asked of it, in one process of Python: what
comes out of it in a second says more of the server than of a reader.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moto.server import ThreadedMotoServer
from pyarrow import fs as pafs

BUCKET = "benchmark"


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """Gives the URI of a folder's copy in a bucket, and the process that serves it."""
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    store = pafs.S3FileSystem(
        endpoint_override=endpoint, region="us-east-1", allow_bucket_creation=True
    )
    store.create_dir(BUCKET)
    pafs.copy_files(
        str(folder), f"{BUCKET}/{folder.name}", pafs.LocalFileSystem(), store, use_threads=False
    )
    try:
        yield f"s3://{BUCKET}/{folder.name}", server.pid
    finally:
        server.communicate()


def main() -> None:
    """Serves until nobody holds its input open any more."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request would take its time
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print(server.get_host_and_port()[1], flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
