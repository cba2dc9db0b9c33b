"""Pretraining on Ray Train, worker side: build, resume, process one global batch after another.

All workers save and report at the same steps. Only rank 0 writes checkpoints and logs. Random
numbers follow from (seed, epoch, clip id), so a step's computation depends only on its number.

Method: XKD, arXiv:2211.13929, sections 3 and 4.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from ray import train
from ray.train.torch import get_device
from torch import Tensor

from pipelines.config.pretrain import PretrainConfig
from pipelines.dataset.clip_ids import EXCLUDE_SHA256, clip_ids_sha256
from pipelines.dataset.joined import open_datasets
from pipelines.errors import UserError
from pipelines.evaluation.rungs import KnnScorer, RungScorer
from pipelines.meters import show
from pipelines.models.checkpoints import TrainingInfo, read_info, read_unsent
from pipelines.storage import AnyPath, path_of
from pipelines.tracking.runs import RunRef
from pipelines.tracking.tracker import UNSENT_FILE, Tracker
from pipelines.training.checkpoint_writer import Saver, Signals
from pipelines.training.device_views import DeviceViews
from pipelines.training.feed import Feed, make_feed
from pipelines.training.finite_watch import FiniteWatch
from pipelines.training.gpu_metrics import GpuMetrics
from pipelines.training.host_memory import keep_freed_memory
from pipelines.training.outcome import TrainOutcome
from pipelines.training.records import StepLog, reduce_metrics
from pipelines.training.state import (
    build_state,
    checkpoint_to_load,
    load_state,
    saved_tensors,
    step_options,
)
from pipelines.training.stopping import DrainWatch, Stop, StopSignal
from pipelines.training.throughput import Clock, SlowdownWatch
from xkd_core.flops import device_peak, step_flops
from xkd_core.health import CollapseWatch, measure_health
from xkd_core.step_graph import StepGraph
from xkd_core.train_step import TrainState, non_finite, train_step
from xkd_core.views.views import Views


def train_loop_per_worker(values: dict[str, Any]) -> dict[str, Any]:
    """Trains in one worker; the return value of rank 0 is the result of the training."""
    config = PretrainConfig.model_validate(values["config"])
    run = RunRef(**values["run"])
    context = train.get_context()
    rank = context.get_world_rank()
    dataset = open_datasets(config.dataset)
    folder = path_of(config.output) / config.name
    if get_device().type == "cpu":
        keep_freed_memory()
    exclude_sha256 = clip_ids_sha256(config.exclude)
    if exclude_sha256 != values[EXCLUDE_SHA256]:  # edited before this worker restarted
        raise UserError(f"exclude ({config.exclude}) names other clips than when training began")
    with ExitStack() as stack:
        feed = make_feed(config, dataset, rank=rank, world_size=context.get_world_size())
        stack.enter_context(closing(feed))
        checkpoint = checkpoint_to_load(config, values["rungs"])
        state = build_state(config, values["initial"] if checkpoint is None else None)
        if checkpoint is not None:
            load_state(state, checkpoint, config, dataset.dataset_id)
        log = None
        if rank == 0:
            own = checkpoint if checkpoint is not None and checkpoint.parent == folder else None
            log = _step_log(config, run, values["board"], own, state.step)
            stack.enter_context(closing(log.tracker))
        # Closed before the tracker: the last checkpoint completes before the last metrics are sent.
        saver = stack.enter_context(closing(Saver(folder, rank)))
        info = TrainingInfo(
            next_step=0,
            total_steps=math.ceil(config.epochs * feed.steps_per_epoch),
            steps_per_epoch=feed.steps_per_epoch,
            config=values["config"],
            dataset_id=dataset.dataset_id,
            run_id=run.run_id,
            code_version=values["code_version"],
            exclude_sha256=exclude_sha256,
            order_sha256=dataset.index.order_sha256 if rank == 0 else None,
            began_from=read_info(checkpoint).began_from if checkpoint else values["began_from"],
        )
        stop_signal = StopSignal(values["board"] if rank == 0 else None, values["deadline"])
        rungs = RungScorer(values["rungs"], info.total_steps, info.steps_per_epoch)
        knn = KnnScorer(config, info.total_steps, info.steps_per_epoch)
        gpu = GpuMetrics(get_device())
        drains = DrainWatch(rank)
        graph = StepGraph(state, config, **step_options(config)) if config.cuda_graphs else None
        training = _Training(
            config, feed, state, graph, saver, stop_signal, drains, rungs, knn, info, gpu, log
        )
        if state.step == 0:
            training.score_knn()
            training.score()
        return asdict(_train(training))


def _step_log(
    config: PretrainConfig, run: RunRef, board: Any, own: AnyPath | None, step: int
) -> StepLog:
    """Opens the log of rank 0.

    Args:
        config: Settings of the training.
        run: MLflow run that it logs to.
        board: The driver's board.
        own: Checkpoint of this training that it continues from.
        step: First step.
    """
    tracker = Tracker(
        run,
        path_of(config.output) / config.name / UNSENT_FILE,
        system_metrics=True,
        resumed=step > 0,
        unsent=read_unsent(own) if own else (),
    )
    collapse_watch = CollapseWatch(read_info(own).health if own else ())
    board.begin.remote(step)
    show("xkd_start_time", time.time(), config.name)
    return StepLog(config.name, tracker, board, SlowdownWatch(), collapse_watch)


@dataclass(frozen=True)
class _Training:
    """State and settings of the training loop."""

    config: PretrainConfig
    feed: Feed
    state: TrainState
    graph: StepGraph | None
    """Takes the steps if they are replayed."""
    saver: Saver
    stop_signal: StopSignal
    drains: DrainWatch
    rungs: RungScorer
    knn: KnnScorer
    info: TrainingInfo
    gpu: GpuMetrics
    log: StepLog | None
    """None but on rank 0."""

    def is_last(self, step: int) -> bool:
        return step + 1 == self.info.total_steps

    def is_due(self, step: int) -> bool:
        """Whether the metrics of a step are recorded."""
        is_rung = self.rungs.is_due(step + 1)
        return self.is_last(step) or is_rung or step % self.config.log_every == 0

    def is_saved(self, step: int) -> bool:
        """Whether a checkpoint follows a step, apart from stops."""
        is_rung = self.rungs.is_due(step + 1)
        return self.is_last(step) or is_rung or (step + 1) % self.config.checkpoint_every == 0

    def record(self, numbers: Mapping[str, float], step: int) -> None:
        """Logs the metrics of a step on rank 0."""
        if self.log is not None:
            self.log.step({**numbers, **self.gpu.read()}, step, self.info.total_steps)

    def score(self) -> dict[str, Any]:
        """Scores the networks on rank 0 if the step is a rung."""
        step = self.state.step
        if self.log is None or not self.rungs.is_due(step):
            return {}
        collapse = self.log.collapse_watch.signs
        scored = self.rungs.score(self.state.model, self.config, step, collapse)
        scores = {f"score/{name}": value for name, value in scored["scores"].items()}
        self.log.tracker.log(scores, step)
        return scored

    def score_knn(self) -> None:
        """Logs the teachers' k-NN scores on rank 0 if they are due."""
        step = self.state.step
        if self.log is not None and self.knn.is_due(step):
            self.log.tracker.log(self.knn.score(self.state.model), step)

    def signals(self) -> tuple[Signals, tuple[str, ...]]:
        """Returns what all workers agree on, and the nodes of theirs that are about to leave."""
        is_look_due = self.drains.is_due()
        signals = self.saver.after_step(self.stop_signal.now(), is_look_due=is_look_due)
        drained = self.drains.look() if signals.is_look_due else ()
        if drained and not signals.stop:
            signals = replace(signals, stop=Stop.DRAINED)
        return signals, drained

    def save(self, scored: Mapping[str, Any]) -> None:
        """Starts a checkpoint of the current state; it is reported to Ray Train with its scores."""
        self.saver.save(
            saved_tensors(self.state),
            self.state.optimizer.state_dict(),
            replace(
                self.info,
                next_step=self.state.step,
                health=self.log.collapse_watch.records if self.log is not None else (),
            ),
            self.log.tracker.unsent if self.log is not None else list,
            scored,
        )


def _train(training: _Training) -> TrainOutcome:
    """Processes global batches until the last step or a reason to stop."""
    info, state, saver = training.info, training.state, training.saver
    first_step = state.step
    clock, watch = _clock(training.config), FiniteWatch()
    bad: tuple[int, list[str]] | None = None
    signals, drained = Signals(Stop.NO, has_failed=False), tuple[str, ...]()
    steps = range(first_step, info.total_steps)  # first in the zip: no batch is read after the last
    for step, views in zip(steps, _all_views(training, clock), strict=False):
        with clock.stepping():
            metrics = _step(training, views, clock, has_health=training.is_due(step))
        clock.step_ends()
        watch.see(step, metrics)
        signals, drained = training.signals()
        is_saved = training.is_saved(step) or bool(signals.stop)
        if training.is_due(step) or is_saved:
            numbers, waited = reduce_metrics(metrics, clock.waited_seconds)
            terms = non_finite(numbers)
            bad = watch.first() or ((step, terms) if terms else None)
            if bad is None and training.is_due(step):
                training.record(numbers | clock.lap(waited), step)
        if bad is not None or signals.has_failed:
            break
        with clock.pausing():
            training.score_knn()
        if is_saved:
            with clock.pausing():
                scored = training.score()
            with clock.stalling():
                training.save(scored)
        if signals.stop:
            break
    end = saver.finish()
    return TrainOutcome(
        first_step=first_step,
        next_step=state.step,
        total_steps=info.total_steps,
        clips_per_second=clock.clips_per_second(),
        stop=int(signals.stop),
        drained=drained,
        not_finite=bad,
        has_failed=end.has_failed,
        failure=saver.failure,
    )


def _step(
    training: _Training, views: Views, clock: Clock, *, has_health: bool
) -> dict[str, Tensor | float]:
    def before_update() -> None:
        with clock.stalling():
            training.saver.before_update()

    options: dict[str, Any] = {
        "total_steps": training.info.total_steps,
        "steps_per_epoch": training.info.steps_per_epoch,
        "measure": measure_health if has_health else None,
        "before_update": before_update,
    }
    if training.graph is not None:
        return training.graph.step(views, **options)
    return train_step(
        training.state, views, training.config, **step_options(training.config), **options
    )


def _all_views(training: _Training, clock: Clock) -> Iterator[Views]:
    """Yields the views of one global batch after another, endlessly."""
    config = training.config
    device_views = DeviceViews(config, config.seed, get_device())
    batches = training.feed.batches(training.state.step)
    while True:
        with clock.waiting():
            batch = next(batches)
        with clock.viewing():
            views = device_views.make(batch)
        yield views


def _clock(config: PretrainConfig) -> Clock:
    """A clock that knows the arithmetic of a clip and the peak of all devices."""
    peak = device_peak(get_device())
    num_devices = train.get_context().get_world_size()
    return Clock(config.batch_size, step_flops(config), peak * num_devices if peak else None)
