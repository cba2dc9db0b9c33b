"""Whether all nodes of a cluster see the folders of a job.

The driver writes a file with a random number into each folder, and every node reads it. A folder
that lies on one machine alone would otherwise be noticed hours later, by the first worker elsewhere
that writes into it.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.errors import UserError
from pipelines.storage import path_of

_PATIENCE_SECONDS = 5.0
"""Network file systems may show a new file some seconds late."""
_NODE_SECONDS = 60.0


def check_shared(*locations: str) -> None:
    """Makes sure that every node sees the folders that are not in a bucket.

    Nodes that do not answer within a minute, such as busy or leaving ones, are not judged. Without
    a Ray there is one machine.

    Args:
        *locations: Folders, which are made, and URIs, which are left out.

    Raises:
        UserError: If a node does not see a folder.
    """
    if not ray.is_initialized():
        return
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    folders = [path for path in map(path_of, dict.fromkeys(locations)) if isinstance(path, Path)]
    if len(nodes) < 2 or not folders:
        return
    with ExitStack() as stack:
        files = [stack.enter_context(_nonce(folder)) for folder in folders]
        task = ray.remote(num_cpus=0, max_retries=0)(_unseen)
        asked = {
            task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(files): node
            for node in nodes
        }
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_NODE_SECONDS)
        for answer in ready:
            with contextlib.suppress(ray.exceptions.RayError):
                for number in ray.get(answer):
                    raise UserError(_message(folders[number], asked[answer]))


def _message(folder: Path, node: dict[str, str]) -> str:
    return (
        f"({folder}) must be shared: node {node['NodeManagerHostname']} "
        f"({node['NodeManagerAddress']}) does not see what is written there. Mount the same file "
        "system on every node, or take a bucket, such as s3://BUCKET/FOLDER"
    )


@contextlib.contextmanager
def _nonce(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields a file of the folder and its content, while it exists."""
    text = uuid.uuid4().hex
    file = folder / f".{text[:12]}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError as error:
        raise UserError(f"({folder}) cannot be written: {os.strerror(error.errno or 0)}") from error
    try:
        yield str(file), text
    finally:
        file.unlink(missing_ok=True)


def _unseen(files: Sequence[tuple[str, str]]) -> list[int]:
    """Returns the numbers of the files that this node does not see."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        unseen = [number for number, (file, text) in enumerate(files) if _read(file) != text]
        if not unseen or time.monotonic() > until:
            return unseen
        time.sleep(0.2)


def _read(file: str) -> str:
    try:
        return Path(file).read_text()
    except OSError:
        return ""
