"""Our step and what it is compared with, on the same parameters and views: for `train_step.py`.

Before anything is timed, both are shown to be the same.
"""

import argparse
import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
from plain_step import Baseline, PublishedInBfloat16, fused_adamw
from published_step import PlainXKD

from xkd_core import xkd
from xkd_core.compilation import compile_blocks
from xkd_core.config import MethodConfig, ModelConfig, OptimizerConfig, TransformerConfig
from xkd_core.encoders import EncoderInput
from xkd_core.losses import initial_centers, losses, teacher_temperatures
from xkd_core.optim import build_optimizer
from xkd_core.step_graph import StepGraph
from xkd_core.train_step import TrainState, train_step
from xkd_core.views.log_mel import LogMel
from xkd_core.views.parameters import draw_view_parameters
from xkd_core.views.views import ClipBatch, Views, make_views
from xkd_core.xkd import XKD, build_xkd

PRESETS = {
    "micro": ((48, 3, 3), (32, 2, 4)),
    "tiny": ((192, 12, 3), (96, 4, 3)),
    "small": ((384, 12, 6), (192, 4, 6)),
    "base": ((768, 12, 12), (384, 4, 12)),
    "large": ((1024, 24, 16), (512, 8, 16)),
}
"""Width, depth and heads of encoder and decoder."""
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
OTHERS: dict[str, type[PlainXKD]] = {
    "plain": Baseline,
    "published": PlainXKD,
    "published-bfloat16": PublishedInBfloat16,
}
"""What ours is compared with: plain PyTorch in bfloat16, and the published composition."""
MOMENTUM = 0.997


def method(preset: str) -> MethodConfig:
    """The paper's method at a size."""
    encoder, decoder = (
        TransformerConfig(width=width, depth=depth, num_heads=num_heads)
        for width, depth, num_heads in PRESETS[preset]
    )
    return MethodConfig(
        model=ModelConfig(encoder=encoder, decoder=decoder),
        optimizer=OptimizerConfig(warmup_epochs=0.0),
    )


def random_clips(batch_size: int, config: MethodConfig, device: str) -> ClipBatch:
    """Clips of noise as the feed gives them."""
    video, audio = config.model.video, config.model.audio
    frames = torch.randint(256, (batch_size, video.num_frames, 128, 170, 3), dtype=torch.uint8)
    samples = torch.randint(-9000, 9000, (batch_size, audio.num_samples), dtype=torch.int16)
    heights, widths = torch.full((batch_size,), 128), torch.full((batch_size,), 170)
    return ClipBatch(*(t.to(device) for t in (frames, heights, widths, samples)))


class Bench:
    """Ours and the published composition on the same parameters and the same views."""

    def __init__(self, config: MethodConfig, options: argparse.Namespace) -> None:
        self.config, self.options, self.device = config, options, options.device
        self.peaks: dict[str, int] = {}
        if not options.packed:
            mock.patch.object(xkd, "encode_together", each_by_itself).start()
        self.model = build_xkd(config.model).to(self.device)
        self.log_mel = LogMel(config.model.audio).to(self.device)
        self.clips = random_clips(options.batch, config, self.device)
        ids = [f"clip-{number}" for number in range(options.batch)]
        self.parameters = draw_view_parameters(ids, [0] * options.batch, 0, config)
        self.views = self.make_views()
        forward = self.model
        if options.compile == "blocks":
            compile_blocks(self.model)
        elif options.compile != "off":
            forward = torch.compile(self.model, mode=options.compile)
        width = config.model.head.output_width
        self.state = TrainState(
            model=self.model,
            forward=forward,
            optimizer=build_optimizer(self.model, config.optimizer),
            centers=initial_centers(width, self.device),
        )
        self.graph: StepGraph | None = None
        self.others = {
            name: share_parameters(self.model, config, OTHERS[name]) for name in options.against
        }
        self.optimizers = {name: self._optimizer(name) for name in self.others}
        self.centers = {name: list(initial_centers(width, self.device)) for name in self.others}

    def _optimizer(self, name: str) -> torch.optim.AdamW:
        """An optimizer whose moments are those of ours."""
        other = self.others[name]
        if name == "plain":
            optimizer = fused_adamw(other, self.config.optimizer.learning_rate)
        else:
            optimizer = plain_adamw(other, self.config)
        optimizer.state = self.state.optimizer.state
        return optimizer

    def make_views(self) -> Views:
        return make_views(self.clips, self.parameters, self.config, self.log_mel)

    def ours(self, dtype: torch.dtype | None) -> None:
        """One step as training takes it."""
        views = self.make_views() if self.options.views else self.views
        if self.options.graph:
            self.graph = self.graph or StepGraph(self.state, self.config, autocast_dtype=dtype)
            self.graph.step(views, total_steps=10**6, steps_per_epoch=1e3)
            return
        train_step(
            self.state,
            views,
            self.config,
            total_steps=10**6,
            steps_per_epoch=1e3,
            autocast_dtype=dtype,
        )

    def other(self, name: str) -> None:
        """One step of what ours is compared with."""
        self.others[name].step(
            self.views,
            self.centers[name],
            self.optimizers[name],
            max_norm=self.config.optimizer.max_grad_norm,
            momentum=MOMENTUM,
        )

    def check_same_loss(self) -> None:
        """In float32 the losses and gradients are those of the others; in bfloat16 nearly."""
        centers = initial_centers(self.config.model.head.output_width, self.device)
        forwards = {
            "ours": lambda: losses(
                self.model(self.views),
                centers,
                self.config.objective,
                teacher_temperatures(self.config.objective, 0.0),
            )[0]
        }
        for name, other in self.others.items():
            forwards[name] = lambda other=other: other.loss(self.views, list(centers))[0]
        results = {}
        for name, forward in forwards.items():
            total = forward()
            total.backward()
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norms = torch.stack([gradient.norm() for gradient in gradients])
            results[name] = (total.item(), norms.cpu().numpy())
            self.model.zero_grad(set_to_none=True)
        for name in self.others:
            # Its MMD is taken in bfloat16, which is too coarse for it.
            if name != "published-bfloat16":
                tolerance = 1e-2 if name == "published" else 5e-2
                assert_same(*zip(results["ours"], results[name], strict=True), tolerance)

    def synchronize(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()


def each_by_itself(inputs: list[EncoderInput]) -> list[torch.Tensor]:
    """What packing is compared with: every view passes the blocks alone."""
    return [one.encoder(one.clip, one.keep) for one in inputs]


def share_parameters(model: XKD, config: MethodConfig, kind: type[PlainXKD] = PlainXKD) -> PlainXKD:
    """Another composition with the parameters of a model, not with copies."""
    with torch.device("meta"):
        plain = kind(config)
    plain.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_("_teacher" not in name)
    return plain


def plain_adamw(plain: PlainXKD, config: MethodConfig) -> torch.optim.AdamW:
    trainable = [p for p in plain.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": 0.3},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    rate = config.optimizer.learning_rate
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), foreach=False, fused=False)


def assert_same(
    totals: tuple[float, float], norms: tuple[np.ndarray, np.ndarray], tolerance: float
) -> None:
    # Alignment in float32 loses some of its constant to rounding: up to 0.8 / 7 of all.
    assert math.isclose(*totals, rel_tol=tolerance, abs_tol=0.15), totals
    floor = tolerance * 1e-2 * norms[1].max()
    np.testing.assert_allclose(norms[0], norms[1], rtol=tolerance, atol=floor)


def check_three_steps() -> None:
    """At the smallest size three steps of both lead to the same losses and parameters."""
    config = method("micro")
    parameters = draw_view_parameters(["a", "b", "c"], [0, 0, 0], 0, config)
    log_mel = LogMel(config.model.audio)
    views = make_views(random_clips(3, config, "cpu"), parameters, config, log_mel)
    model = build_xkd(config.model)
    plain = share_parameters(copy.deepcopy(model), config)
    state = TrainState(
        model, model, build_optimizer(model, config.optimizer), initial_centers(8192)
    )
    optimizer, centers = plain_adamw(plain, config), list(initial_centers(8192))
    for _ in range(3):
        total = train_step(state, views, config, total_steps=10**9, steps_per_epoch=1e9)
        other = plain.step(views, centers, optimizer, max_norm=0.3, momentum=MOMENTUM)
        assert math.isclose(total["loss/total"].item(), other.item(), rel_tol=1e-3, abs_tol=0.15)
    teachers = [model.video_teacher.cls_token, plain.video_teacher.cls_token]
    torch.testing.assert_close(*teachers, rtol=1e-3, atol=1e-6)


@contextlib.contextmanager
def nothing_unexpected(bench: Bench) -> Iterator[None]:
    """Fails where a step waits for the device, and where it is compiled again."""
    with contextlib.ExitStack() as stack:
        if bench.options.compile != "off":
            stack.enter_context(torch._dynamo.config.patch(error_on_recompile=True))
        if bench.device != "cpu":
            before = torch.cuda.get_sync_debug_mode()
            stack.callback(torch.cuda.set_sync_debug_mode, before)
            torch.cuda.set_sync_debug_mode("error")
        yield


def timed(bench: Bench, work: Callable[[], object]) -> float:
    """Wall seconds of a device that has nothing else to do, or CPU seconds of this process."""
    is_alone = bench.device == "cpu" and bench.options.threads == 1
    clock = time.process_time if is_alone else time.perf_counter
    with synchronization_allowed(bench):
        bench.synchronize()
    begun = clock()
    work()
    with synchronization_allowed(bench):
        bench.synchronize()
    return clock() - begun


@contextlib.contextmanager
def synchronization_allowed(bench: Bench) -> Iterator[None]:
    if bench.device == "cpu":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    yield
    torch.cuda.set_sync_debug_mode(mode)
