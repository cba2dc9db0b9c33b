"""A whole training on a device that obeys a GPU's rules, on a machine that has none.

The device waits only where numbers are due: to record, to score, to load a checkpoint.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines.models.checkpoints import load_tensors
from pipelines.training import device_views, loop, state, stopping
from tests.helpers.clip_datasets import write_dataset
from tests.helpers.pretend_device import DEVICE, pretend_device
from tests.helpers.training import NUM_CLIPS, tiny_config

STEPS = 3
SETTINGS = {
    "epochs": STEPS / 4,
    "log_every": 2,
    "checkpoint_every": 2,
    "health": {"knn": {"every_epochs": 1}},
    "optimizer": {"learning_rate": 1e-3, "warmup_epochs": 0.0},
}
ALL_SETTINGS = {
    "objective": {"refinement": "cross", "mmd_bandwidth": "median", "mmd_unbiased": True},
    "views": {"num_video_globals": 2, "num_audio_globals": 2, "num_video_locals": 2},
    "accumulation_steps": 2,
}


class Recorder:
    """Stands where Ray Train, MLflow and the driver are: what they hear of a training."""

    def __init__(self, monkeypatch, device):
        self.metrics = {}
        self.checkpoints = []
        context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
        monkeypatch.setattr("ray.train.get_context", lambda: context)
        monkeypatch.setattr("ray.train.report", self._report)
        monkeypatch.setattr("ray.train.get_all_reported_checkpoints", list)
        monkeypatch.setattr("ray.train.get_preemption_info", lambda: None)
        monkeypatch.setattr(stopping, "LOOK_SECONDS", 0.0)  # at every step
        monkeypatch.setattr(state, "broadcast_from_rank_zero", lambda name: name)
        monkeypatch.setattr(state, "prepare_model", lambda model, **_: model)
        monkeypatch.setattr(state, "get_device", lambda: device)
        monkeypatch.setattr(loop, "get_device", lambda: device)
        monkeypatch.setattr(loop, "Tracker", lambda *_, **__: self)
        monkeypatch.setattr(
            loop, "StopSignal", lambda _, deadline: stopping.StopSignal(None, deadline)
        )
        hears = SimpleNamespace(remote=lambda *_: None)
        self.board = SimpleNamespace(begin=hears, post=hears, warn=hears)

    def _report(self, _, checkpoint, **__):
        self.checkpoints.append(checkpoint.path)

    def log(self, numbers, step):
        self.metrics.setdefault(step, {}).update(numbers)

    def tag(self, *_):
        pass

    def unsent(self):
        return []

    def close(self):
        pass


def run_loop(recorder, config):
    (Path(config.output) / config.name).mkdir(parents=True)
    return loop.train_loop_per_worker(
        {
            "config": config.model_dump(mode="json"),
            "exclude_sha256": "",
            "code_version": "code",
            "run": {"uri": "", "run_id": "", "experiment_id": ""},
            "board": recorder.board,
            "deadline": None,
            "rungs": None,
            "initial": None,
            "began_from": None,
        }
    )


def let_wait(monkeypatch, device):
    """Where a training may wait for the device."""
    for owner, name in (
        (loop, "build_state"),
        (loop, "load_state"),
        (loop, "reduce_metrics"),
        (loop.FiniteWatch, "first"),
        (loop.KnnScorer, "score"),
        (device_views.LogMel, "to"),
    ):
        monkeypatch.setattr(owner, name, device.allowing(getattr(owner, name)))


def count_copies(monkeypatch, device):
    """Copies from the host that the views of each batch take."""
    counts, make = [], device_views.DeviceViews.make

    def counted(*args):
        before = len(device.copies)
        views = make(*args)
        counts.append(len(device.copies) - before)
        return views

    monkeypatch.setattr(device_views.DeviceViews, "make", counted)
    return counts


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Of several sizes, a third of them held out."""
    return write_dataset(
        tmp_path_factory.mktemp("clips") / "clips",
        NUM_CLIPS,
        num_frames=10,
        size=lambda clip: (20 + clip % 3, 24 + clip % 5),
        split=lambda clip: "val" if clip % 6 > 3 else "train",
    )


@pytest.mark.parametrize("settings", [{}, ALL_SETTINGS], ids=["published", "others"])
def test_a_training_runs_where_tensors_of_two_devices_do_not_mix(
    tmp_path, monkeypatch, clips, settings
):
    settings = SETTINGS | settings
    on_cpu = tiny_config(tmp_path / "cpu", clips, **settings)
    with monkeypatch.context() as patched:
        expected = Recorder(patched, torch.device("cpu"))
        run_loop(expected, on_cpu)
    config = tiny_config(tmp_path / "device", clips, **settings)
    with monkeypatch.context() as patched, pretend_device(patched) as device:
        let_wait(patched, device)
        recorder = Recorder(patched, DEVICE)
        copies = count_copies(patched, device)
        outcome = run_loop(recorder, config)
        assert outcome["next_step"] == STEPS
        assert not outcome["failure"]
        assert copies == [2] * STEPS  # clips, and the parameters of their views
        earlier, last = recorder.checkpoints
        resumed = config.model_copy(update={"name": "resumed", "resume": earlier})
        again = Recorder(patched, DEVICE)
        assert run_loop(again, resumed)["first_step"] == 2
    assert recorder.metrics.keys() == expected.metrics.keys() == {0, 2, 3}
    assert "speed/mfu" in expected.metrics[2]
    for step, numbers in expected.metrics.items():
        # The device has no name by which its peak were known.
        assert recorder.metrics[step].keys() == numbers.keys() - {"speed/mfu"}
        for name in numbers:
            if not name.startswith(("time/", "speed/")):
                close = pytest.approx(numbers[name], rel=1e-3, abs=1e-4)
                assert recorder.metrics[step][name] == close, (step, name)
    tensors, resumed = load_tensors(Path(last)), load_tensors(Path(again.checkpoints[-1]))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in tensors.items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("settings", [{}, ALL_SETTINGS], ids=["published", "others"])
def test_a_training_runs_on_a_gpu(tmp_path, monkeypatch, clips, settings):
    config = tiny_config(tmp_path, clips, **SETTINGS, **settings)
    recorder = Recorder(monkeypatch, torch.device("cuda"))
    outcome = run_loop(recorder, config)
    assert outcome["next_step"] == STEPS
    assert not outcome["failure"]
    assert not outcome["not_finite"]
    assert len(recorder.checkpoints) == 2
    resumed = config.model_copy(update={"name": "resumed", "resume": recorder.checkpoints[0]})
    assert run_loop(recorder, resumed)["first_step"] == 2
