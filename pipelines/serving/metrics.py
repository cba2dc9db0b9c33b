"""What the service counts. Ray's agents collect it, with what Ray Serve counts by itself."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import ray
from ray.util.metrics import Counter, Histogram

from pipelines.serving.refusal import RefusedError

_PREFIXES = ("ray_xkd_", "ray_serve_")
_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
_TIMEOUT = aiohttp.ClientTimeout(total=5)


class Metrics:
    """Counts requests by status, segments, and seconds."""

    def __init__(self) -> None:
        self._requests = Counter(
            "xkd_requests", "Requests for an embedding, by status of HTTP.", tag_keys=("status",)
        )
        self._segments = Counter("xkd_segments", "Segments that were embedded.")
        self._seconds = Histogram(
            "xkd_embed_seconds", "Seconds from a file to its embedding.", boundaries=_SECONDS
        )

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts a request by how it ends."""
        status = 200
        try:
            yield
        except RefusedError as refusal:
            status = refusal.status
            raise
        except asyncio.CancelledError:
            status = 408
            raise
        except Exception:
            status = 500
            raise
        finally:
            self._requests.inc(1, tags={"status": str(status)})

    def embedded(self, num_segments: int, seconds: float) -> None:
        """Counts an embedding."""
        self._segments.inc(num_segments)
        self._seconds.observe(max(seconds, 1e-9))


async def node_metrics() -> str:
    """Returns the metrics of this service and of Ray Serve, from the agents of all nodes."""
    addresses = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in await asyncio.to_thread(ray.nodes)
        if node["Alive"] and node["MetricsExportPort"]
    ]
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        texts = await asyncio.gather(*(_text(session, address) for address in addresses))
    return "".join(_selected(text) for text in texts)


async def _text(session: aiohttp.ClientSession, address: str) -> str:
    try:
        async with session.get(address) as response:
            return await response.text()
    except (aiohttp.ClientError, TimeoutError):
        return f"# {address} did not answer\n"


def _selected(text: str) -> str:
    """Keeps the lines about this service and Ray Serve."""
    kept = []
    for line in text.splitlines():
        name = line.split()[2] if line.startswith(("# HELP ", "# TYPE ")) else line
        if name.startswith(_PREFIXES) or line.endswith("did not answer"):
            kept.append(line + "\n")
    return "".join(kept)
