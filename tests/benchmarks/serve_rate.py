"""How many segments a second does the service embed, beside the encoder alone?

    python tests/benchmarks/serve_rate.py [preset=base] [files=16] [rounds=3] [batch=8]
        [clients=16]

Clients upload made films of 5 s, one segment each, to `xkd serve` with one replica and one thread
for the encoder. The bare encoder has one thread too and takes batches of the same size, in three
forms: views that are ready, decoded frames given to the pulled model, and files given to it. They
take turns with the service. Decoding, HTTP and clients have the other CPUs: one is needed.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import av
import mlflow
import numpy as np
import requests
import torch
from encoder_inference import PRESETS
from program import environment, median_and_range, options

from pipelines.config.base import JobConfig, TrackingSettings
from pipelines.media.decode import decode_segments
from pipelines.models.encoder_files import ClipSettings, EncoderInfo
from pipelines.registry.versions import find_or_make_version, registered_model
from pipelines.tracking.runs import open_run
from xkd_core.config import ModelConfig, TransformerConfig
from xkd_core.encoders import build_encoder

DEFAULTS = {"preset": "base", "files": "16", "rounds": "3", "batch": "8", "clients": "16"}
NAME = "xkd-video"


def main() -> None:
    """Prints a table, and one JSON line last."""
    given = options(DEFAULTS)
    num_files, rounds, batch = (int(given[name]) for name in ("files", "rounds", "batch"))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tracking = register(folder, given["preset"])
        films = [write_film(folder / f"{seed}.mp4", seed) for seed in range(num_files)]
        mlflow.set_tracking_uri(tracking.uri)
        model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
        with served(tracking, batch) as address:
            service = service_of(address, films, int(given["clients"]))
            forms = {"service": service, **bare_forms(model, films, batch)}
            check(model, films[0], address)
            for run in forms.values():
                run()  # warm-up
            seconds: dict[str, list[float]] = {name: [] for name in forms}
            for _ in range(rounds):
                for name, run in forms.items():
                    begun = time.perf_counter()
                    run()
                    seconds[name].append(time.perf_counter() - begun)
    report(given, num_files, seconds)


def report(given: dict[str, str], num_files: int, seconds: dict[str, list[float]]) -> None:
    """Prints rates, and the service's share of each bare form, round by round."""
    results = {}
    for name, values in seconds.items():
        rates = [num_files / value for value in values]
        shares = [bare / own for bare, own in zip(values, seconds["service"], strict=True)]
        results[name] = {"segments_per_second": rates, "service_share": shares}
        print(f"{name:22} {median_and_range(rates)} segments/s", end="")
        print("" if name == "service" else f"   service: {median_and_range(shares)} of it")
    versions = environment("ray", "torch", "mlflow", "av")
    print(json.dumps({"benchmark": "serve_rate", **given, **versions, "results": results}))


def register(folder: Path, preset: str) -> TrackingSettings:
    """Registers a new video encoder of the paper's clips."""
    width, depth, num_heads = PRESETS[preset]
    config = ModelConfig(encoder=TransformerConfig(width=width, depth=depth, num_heads=num_heads))
    torch.manual_seed(0)
    encoder = build_encoder(config, "video").eval()
    info = EncoderInfo("video", config, ClipSettings(), {"step": 0})
    tracking = TrackingSettings(uri=f"sqlite:///{folder}/mlflow.db")
    run = open_run(JobConfig(tracking=tracking), "promote", "benchmark")
    registered_model(run.client(), NAME, info)
    version = find_or_make_version(encoder, info, NAME, "# card\n", run)
    run.client().set_registered_model_alias(NAME, "champion", version.version)
    return tracking


def write_film(path: Path, seed: int) -> Path:
    """Writes 5 s of moving noise as H.264, 340 x 256 at 25 frames a second."""
    noise = np.random.default_rng(seed).integers(0, 255, (32, 43, 3), np.uint8)
    large = noise.repeat(8, 0).repeat(8, 1)[:, :340]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 340, 256, "yuv420p"
        for number in range(125):
            frame = av.VideoFrame.from_ndarray(np.roll(large, 2 * number, axis=1), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@contextmanager
def served(tracking: TrackingSettings, batch: int) -> Iterator[str]:
    """Runs `xkd serve`; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [f"port={port}", f"tracking.uri={tracking.uri}", f"max_batch_size={batch}"]
    settings += ["max_ongoing_requests=64", "batch_wait_seconds=0.1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.serve", f"{NAME}@champion", *settings],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    while "Ctrl-C" not in (line := process.stdout.readline()):
        assert line, "the service did not start"
    try:
        yield f"http://127.0.0.1:{port}/v1/embeddings/file"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def upload(address: str, film: Path) -> list[float]:
    answer = requests.post(address, files={"file": film.read_bytes()}, timeout=300)
    answer.raise_for_status()
    return answer.json()["embedding"]


def service_of(address: str, films: list[Path], clients: int) -> Callable[[], None]:
    """Uploads every film once, so many at a time."""

    def run() -> None:
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(lambda film: upload(address, film), films))

    return run


def bare_forms(model: object, films: list[Path], batch: int) -> dict[str, Callable[[], None]]:
    """The encoder in this process: from views, from decoded frames, from files."""
    python_model = model.unwrap_python_model()
    encoder, info = python_model.module, python_model.module.info
    cuts = {
        "segment_seconds": info.clips.segment_seconds,
        "min_segment_seconds": info.clips.min_segment_seconds,
        "short_side": info.clips.short_side,
        "frame_rate": info.model.video.frame_rate,
        "sample_rate": info.model.audio.sample_rate,
    }
    arrays = [segment.frames for film in films for segment in decode_segments(str(film), **cuts)]
    windows = [window for array in arrays for window in python_model._windows(array, 2)]
    with torch.no_grad():
        views = torch.cat([python_model._view(window) for window in windows])
    settings = {"batch_size": batch * info.clips.num_windows}

    @torch.no_grad()
    def from_views() -> None:
        for part in views.split(batch * info.clips.num_windows):
            encoder.encoder.embed(part)

    return {
        "encoder, views ready": from_views,
        "model, frames": lambda: model.predict({"frames": arrays}, settings),
        "model, files": lambda: model.predict({"path": list(map(str, films))}, settings),
    }


def check(model: object, film: Path, address: str) -> None:
    """Makes sure that both compute the same."""
    expected = model.predict({"path": [str(film)]})[0]
    assert np.abs(np.array(upload(address, film)) - expected).max() < 1e-4


if __name__ == "__main__":
    main()
