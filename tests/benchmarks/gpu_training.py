"""Does a short training on a GPU learn? k-NN of the teachers before and after, of clips it draws.

    python tests/benchmarks/gpu_training.py [--device cuda] [--preset small] [--batch 128]
        [--train-seconds 90] [--clips-per-kind 64] [--workers 8] [--compile]

The clips are the synthetic ones of the demonstration, drawn without files: ten kinds, each with a
pattern in time that picture and sound share. They lie on the device as bytes, so that nothing but
the step is measured. Half of each kind is scored by its neighbors among the other half. A step must
not wait for the device; one that does ends this program.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from multiprocessing import get_context

import numpy as np
import torch
from step_bench import PRESETS
from torch import Tensor

from pipelines.sources.synthetic_patterns import KINDS
from pipelines.sources.synthetic_scenes import Scene, make_scene
from xkd_core.classifiers.probes import accuracy, knn_predict
from xkd_core.compilation import compile_blocks, uncompiled
from xkd_core.config import MethodConfig, ModelConfig, OptimizerConfig, TransformerConfig
from xkd_core.encoders import Encoder
from xkd_core.flops import device_peak, step_flops
from xkd_core.losses import initial_centers
from xkd_core.optim import build_optimizer
from xkd_core.train_step import TrainState, non_finite, train_step
from xkd_core.views.log_mel import LogMel
from xkd_core.views.parameters import draw_view_parameters
from xkd_core.views.transfer import copy_together
from xkd_core.views.views import ClipBatch, make_views, plain_views
from xkd_core.xkd import build_xkd

SIDE = 160
"""Of the largest frame that is drawn."""
SAMPLE_RATE = 16_000
TIMED_STEPS = 4
"""Steps after which the length of the training is known."""
NEIGHBORS = 5


def main() -> None:
    """Prints the scores before and after, and one JSON line last."""
    options = parse()
    torch.manual_seed(0)
    begun = time.perf_counter()
    clips, kinds = drawn_clips(options.clips_per_kind, options.workers, options.device)
    drawn = time.perf_counter() - begun
    training = Training(options, clips)
    before = training.scores(kinds)
    result = training.run(options.train_seconds)
    after = training.scores(kinds)
    print(f"{len(kinds)} clips drawn in {drawn:.1f} s; {result['steps']} steps")
    for modality, score in before.items():
        print(f"k-NN of the {modality} teacher {score:6.1%} -> {after[modality]:6.1%}, chance 10 %")
    print(f"{result['clips_per_second']:.1f} clips/s, loss {result['losses']}")
    head = {"benchmark": "gpu_training", "preset": options.preset, "batch": options.batch}
    head |= {"device": options.device, "torch": torch.__version__, "draw_seconds": drawn}
    print(json.dumps({**head, **result, "knn_before": before, "knn_after": after}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--train-seconds", type=float, default=90.0)
    parser.add_argument("--clips-per-kind", type=int, default=64)
    parser.add_argument("--workers", type=int, default=8, help="processes that draw")
    parser.add_argument("--compile", action="store_true", help="the blocks")
    return parser.parse_args()


def drawn_clips(clips_per_kind: int, workers: int, device: str) -> tuple[ClipBatch, Tensor]:
    """Clips on the device, and the number of the kind of each."""
    tasks = [(kind, seed) for seed in range(clips_per_kind) for kind in range(len(KINDS))]
    with get_context("spawn").Pool(min(workers, len(tasks))) as pool:
        drawn = pool.map(draw, tasks, chunksize=4)
    frames, sizes, waveforms = (np.stack(values) for values in zip(*drawn, strict=True))
    batch = ClipBatch(
        frames=torch.from_numpy(frames),
        heights=torch.from_numpy(sizes[:, 0]),
        widths=torch.from_numpy(sizes[:, 1]),
        waveform=torch.from_numpy(waveforms),
    )
    kinds = torch.tensor([kind for kind, _ in tasks])
    return ClipBatch(*(tensor.to(device) for tensor in batch)), kinds.to(device)


def draw(task: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames, their size and samples of 4 s of a scene; a shorter scene begins again."""
    kind, seed = task
    rng = np.random.default_rng([seed, kind])
    scene: Scene = make_scene(list(KINDS)[kind], rng, sample_rate=SAMPLE_RATE)
    video, audio = ModelConfig().video, ModelConfig().audio
    moments = np.arange(video.num_frames) * scene.frame_rate / video.frame_rate
    frames = scene.frames[moments.astype(int) % len(scene.frames)]
    height, width = frames.shape[1:3]
    canvas = np.zeros((len(frames), SIDE, SIDE, 3), np.uint8)
    canvas[:, :height, :width] = frames
    waveform = scene.waveform.mean(axis=1).astype(np.int16)
    return canvas, np.array([height, width]), np.resize(waveform, audio.num_samples)


class Training:
    """Networks of a size, and clips that lie on their device."""

    def __init__(self, options: argparse.Namespace, clips: ClipBatch) -> None:
        self.clips, self.batch = clips, options.batch
        self.device = torch.device(options.device)
        encoder, decoder = (
            TransformerConfig(width=width, depth=depth, num_heads=num_heads)
            for width, depth, num_heads in PRESETS[options.preset]
        )
        self.config = MethodConfig(
            model=ModelConfig(encoder=encoder, decoder=decoder),
            optimizer=OptimizerConfig(learning_rate=5e-4, warmup_epochs=1.0),
        )
        self.log_mel = LogMel(self.config.model.audio).to(self.device)
        model = build_xkd(self.config.model).to(self.device)
        if options.compile:
            compile_blocks(model)
        self.state = TrainState(
            model=model,
            forward=model,
            optimizer=build_optimizer(model, self.config.optimizer),
            centers=initial_centers(self.config.model.head.output_width, self.device),
        )
        self.order = torch.Generator().manual_seed(0)

    def step(self, total_steps: int) -> dict[str, Tensor | float]:
        """Learns from clips drawn at random, views included."""
        number = self.state.step
        rows = torch.randint(len(self.clips.frames), (self.batch,), generator=self.order)
        ids = [f"clip-{row}" for row in rows.tolist()]
        parameters = draw_view_parameters(ids, [number] * self.batch, 0, self.config)
        (rows,) = copy_together((rows,), self.device)
        clips = ClipBatch(*(tensor[rows] for tensor in self.clips))
        return train_step(
            self.state,
            make_views(clips, parameters, self.config, self.log_mel),
            self.config,
            total_steps=total_steps,
            steps_per_epoch=max(1.0, total_steps / 20),
            autocast_dtype=torch.bfloat16,
        )

    def run(self, seconds: float) -> dict[str, object]:
        """Trains for about so long; a few steps first tell how many steps that is."""
        for _ in range(2):  # compilation and warm-up
            self.step(10**6)
        self.synchronize()
        begun = time.perf_counter()
        for _ in range(TIMED_STEPS):
            self.step(10**6)
        self.synchronize()
        pace = (time.perf_counter() - begun) / TIMED_STEPS
        total = self.state.step + max(1, round(seconds / pace))
        first_step, metrics, losses = self.state.step, {}, []
        begun = time.perf_counter()
        while self.state.step < total:
            with no_waiting(self.device):
                metrics = self.step(total)
            losses.append(metrics["loss/total"])
        self.synchronize()
        spent = time.perf_counter() - begun
        clips_per_second = (total - first_step) * self.batch / spent
        peak = device_peak(self.device)
        return {
            "steps": total,
            "clips_per_second": clips_per_second,
            "mfu": clips_per_second * step_flops(self.config) / peak if peak else None,
            "losses": [round(float(losses[0]), 3), round(float(losses[-1]), 3)],
            "not_finite": non_finite(metrics),
        }

    @torch.no_grad()
    def scores(self, kinds: Tensor) -> dict[str, float]:
        """Accuracy of each teacher's embeddings, by neighbors in the other half of the clips."""
        model, half = self.state.model, len(kinds) // 2
        teachers = {"video": model.video_teacher, "audio": model.audio_teacher}
        found = {}
        for number, (modality, teacher) in enumerate(teachers.items()):
            features = self.features(teacher, number)
            predicted = knn_predict(
                features[:half],
                kinds[:half],
                features[half:],
                num_classes=len(KINDS),
                neighbors=min(NEIGHBORS, half),
                temperature=0.1,
            )
            found[modality] = accuracy(predicted, kinds[half:])
        return found

    def features(self, teacher: Encoder, number: int) -> Tensor:
        """Embeddings of all clips in order."""
        parts = []
        for rows in torch.arange(len(self.clips.frames), device=self.device).split(self.batch):
            clips = ClipBatch(*(tensor[rows] for tensor in self.clips))
            view = plain_views(clips, self.config, self.log_mel)[number]
            with uncompiled(), torch.autocast(self.device.type, dtype=torch.bfloat16):
                parts.append(teacher.embed(view).float())
        return torch.cat(parts)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@contextlib.contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Fails where the host waits for a GPU."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    main()
