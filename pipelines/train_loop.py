"""Pretraining on Ray Train, the workers' side: build, resume, one global batch after the other.

Every worker calls `ray.train.report` equally often; rank 0 writes the checkpoints and is the only
one that logs. Random numbers follow from (seed, epoch, clip id), so that what a step computes
depends on nothing but its number.

Method: XKD, arXiv:2211.13929, sections 3 and 4.
"""

import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray import train
from ray.train.torch import get_device, prepare_model
from torch import Tensor, distributed

from pipelines.checkpoints import (
    AUDIO_CENTER,
    VIDEO_CENTER,
    TrainingInfo,
    find_checkpoint,
    load_optimizer_state,
    load_tensors,
    read_info,
    save_checkpoint,
)
from pipelines.clip_dataset import ClipDataset
from pipelines.clip_ids import read_clip_ids
from pipelines.config import PretrainConfig
from pipelines.errors import UserError
from pipelines.feed import Feed, FeedBatch
from pipelines.progress import OnProgress, poster
from pipelines.tracking import RunRef, Tracker, code_version
from xkd_core.audio import LogMel
from xkd_core.health import measure_health
from xkd_core.losses import Centers, initial_centers
from xkd_core.optim import build_optimizer
from xkd_core.train_step import TrainState, train_step
from xkd_core.views import Views, draw_view_parameters, make_views
from xkd_core.xkd import build_xkd, load_model_tensors, model_tensors

MAX_WAIT = 0.1
"""Share of the time spent waiting for clips above which a run is called slow."""
HEALTH_EVERY = 5
"""Records of the losses for one record of the health."""


def make_feed(config: PretrainConfig, dataset: ClipDataset, *, rank: int, world_size: int) -> Feed:
    """The feed of one worker."""
    return Feed(
        dataset,
        splits=config.splits,
        batch_size=config.batch_size,
        rank=rank,
        world_size=world_size,
        seed=config.seed,
        shuffle_window=config.shuffle_window,
        num_frames=config.model.video.num_frames,
        frame_rate=config.model.video.frame_rate,
        num_samples=config.model.audio.num_samples,
        sample_rate=config.model.audio.sample_rate,
        exclude=read_clip_ids(config.exclude) if config.exclude else (),
    )


def train_loop_per_worker(values: dict[str, Any]) -> dict[str, Any]:
    """What each worker runs; the values that rank 0 returns are the result of the training."""
    config = PretrainConfig.model_validate(values["config"])
    run = RunRef(**values["run"])
    context = train.get_context()
    rank = context.get_world_rank()
    dataset = ClipDataset.open(config.dataset)
    feed = make_feed(config, dataset, rank=rank, world_size=context.get_world_size())
    info = TrainingInfo(
        next_step=0,
        total_steps=math.ceil(config.epochs * feed.steps_per_epoch),
        steps_per_epoch=feed.steps_per_epoch,
        config=values["config"],
        dataset_id=dataset.dataset_id,
        run_id=run.run_id,
        code_version=code_version(),
    )
    state = _build(config)
    _resume(state, config, dataset.dataset_id)
    first_step = state.step
    clock = _Clock(config.batch_size)
    post: OnProgress = poster(values["board"]) if rank == 0 else _nobody
    with _tracker(config, run, rank, resumed=first_step > 0) as tracker, closing(feed):
        for step, views in enumerate(_all_views(config, feed, clock, first_step), first_step):
            if step >= info.total_steps:
                break
            last = step + 1 == info.total_steps
            save = last or (step + 1) % config.checkpoint_every == 0
            due = last or step % config.log_every == 0
            healthy = due and (last or step // config.log_every % HEALTH_EVERY == 0)
            metrics = train_step(
                state,
                views,
                config,
                total_steps=info.total_steps,
                steps_per_epoch=info.steps_per_epoch,
                autocast_dtype=_autocast_dtype(config),
                measure=measure_health if healthy else None,
            )
            clock.step_ends()
            if due or save:
                numbers = _averaged(metrics)
                if bad := [name for name, value in numbers.items() if not math.isfinite(value)]:
                    return {"step": step, "not_finite": bad}
            if due:
                numbers |= clock.lap()
                if tracker is not None:
                    tracker.log(numbers, step)
                post(step + 1, info.total_steps, _note(numbers))
            if save:
                _checkpoint(state, replace(info, next_step=step + 1), rank)
    return {
        "first_step": first_step,
        "total_steps": info.total_steps,
        "clips_per_second": clock.clips_per_second(),
    }


def _build(config: PretrainConfig) -> TrainState:
    device = get_device()
    torch.manual_seed(config.seed)
    model = build_xkd(config.model).to(device)
    # Centres are no buffers: DDP has nothing to broadcast.
    wrapped = prepare_model(model, parallel_strategy_kwargs={"broadcast_buffers": False})
    return TrainState(
        model=model,
        forward=torch.compile(wrapped) if config.compile else wrapped,
        optimizer=build_optimizer(model, config.optimizer),
        centers=initial_centers(config.model.head.output_width, device),
    )


def _autocast_dtype(config: PretrainConfig) -> torch.dtype | None:
    on_gpu = get_device().type == "cuda" and torch.cuda.is_bf16_supported()
    if config.precision == "bfloat16" or (config.precision == "auto" and on_gpu):
        return torch.bfloat16
    return None


def _resume(state: TrainState, config: PretrainConfig, dataset_id: str) -> None:
    """Loads the run's last checkpoint, else the one that `resume` names, if there is one."""
    reported = train.get_checkpoint()
    if reported is not None:
        folder = Path(reported.path)
    elif config.resume is not None:
        folder = find_checkpoint(config.resume)
    else:
        return
    info = read_info(folder)
    if info.dataset_id != dataset_id:
        raise UserError(
            f"checkpoint ({folder}) was trained on dataset {info.dataset_id}, "
            f"but dataset ({config.dataset}) is {dataset_id} now"
        )
    tensors = load_tensors(folder)
    device = get_device()
    state.centers = Centers(
        video=tensors.pop(VIDEO_CENTER).to(device), audio=tensors.pop(AUDIO_CENTER).to(device)
    )
    load_model_tensors(state.model, tensors)
    state.optimizer.load_state_dict(load_optimizer_state(folder))
    state.step = info.next_step


def _all_views(
    config: PretrainConfig, feed: Feed, clock: "_Clock", first_step: int
) -> Iterator[Views]:
    """The views of one global batch after the other, without end."""
    log_mel = LogMel(config.model.audio).to(get_device())
    batches = feed.batches(first_step)
    while True:
        with clock.waiting():
            batch = next(batches)
        yield _views(batch, config, log_mel)


def _views(batch: FeedBatch, config: PretrainConfig, log_mel: LogMel) -> Views:
    parameters = draw_view_parameters(batch.clip_ids, batch.epochs, config.seed, config)
    device = get_device()
    clips = type(batch.clips)(*(tensor.to(device, non_blocking=True) for tensor in batch.clips))
    return make_views(clips, parameters, config, log_mel)


def _averaged(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """The metrics as numbers, averaged over the workers; waits for the device."""
    stacked = torch.stack([value.float() for value in metrics.values()])
    if distributed.is_initialized():
        distributed.all_reduce(stacked)
        stacked /= distributed.get_world_size()
    return dict(zip(metrics, stacked.tolist(), strict=True))


def _note(numbers: Mapping[str, float]) -> str:
    note = f"loss {numbers['loss/total']:.3f}"
    wait = numbers.get("time/data_wait_share", 0.0)
    if wait <= MAX_WAIT:
        return f"{note}  data wait {wait:.0%}"
    return f"{note}  data wait {wait:.0%}, too much: put the clip dataset on a faster disk"


def _checkpoint(state: TrainState, info: TrainingInfo, rank: int) -> None:
    """Hands a checkpoint to Ray Train, which stores it while training goes on."""
    if rank != 0:
        train.report({"step": info.next_step})
        return
    tensors = dict(model_tensors(state.model))
    tensors |= {VIDEO_CENTER: state.centers.video, AUDIO_CENTER: state.centers.audio}
    folder = Path(tempfile.mkdtemp(prefix="xkd-checkpoint-"))
    save_checkpoint(folder, tensors, state.optimizer.state_dict(), info)
    train.report(
        {"step": info.next_step},
        checkpoint=train.Checkpoint.from_directory(folder),
        checkpoint_upload_mode=train.CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )


def _nobody(_done: float, _total: float, _note: str) -> None:
    """Where the progress of the other workers goes."""


@contextmanager
def _tracker(
    config: PretrainConfig, run: RunRef, rank: int, *, resumed: bool
) -> Iterator[Tracker | None]:
    """The tracker of rank 0; the others log nothing."""
    if rank != 0:
        yield None
        return
    unsent = Path(config.output) / config.name / "unsent_metrics.jsonl"
    tracker = Tracker(run, unsent, system_metrics=True, resumed=resumed)
    try:
        yield tracker
    finally:
        tracker.close()


class _Clock:
    """Throughput and the share of the time that was spent waiting for clips."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._started = self._lap_started = time.monotonic()
        self._steps = self._lap_steps = 0
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of the block as waiting."""
        begun = time.monotonic()
        yield
        self._waited += time.monotonic() - begun

    def step_ends(self) -> None:
        """Counts a step; the first one is not timed, since it pays for warming up."""
        self._steps += 1
        if self._steps == 1:
            self._started = self._lap_started = time.monotonic()
            self._waited = 0.0
        else:
            self._lap_steps += 1

    def lap(self) -> dict[str, float]:
        """The measures since the last lap; none if no step was timed."""
        numbers: dict[str, float] = {}
        if self._lap_steps:
            seconds = max(time.monotonic() - self._lap_started, 1e-9)
            numbers |= {
                "time/clips_per_second": self._lap_steps * self._batch_size / seconds,
                "time/step_seconds": seconds / self._lap_steps,
                "time/data_wait_share": min(self._waited / seconds, 1.0),
            }
        self._lap_started, self._lap_steps, self._waited = time.monotonic(), 0, 0.0
        return numbers

    def clips_per_second(self) -> float:
        """Over all steps but the first; NaN if there were none."""
        if self._steps < 2:
            return math.nan
        return (self._steps - 1) * self._batch_size / (time.monotonic() - self._started)
