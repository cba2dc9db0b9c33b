"""A made-up sweep: settings, and trials whose scores follow from their values."""

from pathlib import Path
from typing import Any

from pipelines.config.sweep import SweepConfig
from pipelines.evaluation.rungs import Rung
from pipelines.report.sweep_page import SweepRecord
from pipelines.sweep.results import best_trial
from pipelines.sweep.search import num_trials, suggestion
from pipelines.sweep.sweep import SweepResult
from pipelines.sweep.trial_files import Trial
from pipelines.sweep.winner import write_winner
from pipelines.tracking.runs import RunRef

PRETRAIN: dict[str, Any] = {
    "epochs": 8,
    "batch_size": 4,
    "model": {
        "encoder": {"width": 48, "depth": 2, "num_heads": 3},
        "decoder": {"width": 32, "depth": 1, "num_heads": 2},
    },
    "optimizer": {"warmup_epochs": 1},
}
TINY_MODEL: dict[str, Any] = {
    **PRETRAIN["model"],
    "video": {
        "num_frames": 4,
        "frame_rate": 4.0,
        "size": 32,
        "local_size": 16,
        "local_num_frames": 4,
    },
    "audio": {
        "num_samples": 800,
        "sample_rate": 800,
        "local_num_samples": 400,
        "n_fft": 64,
        "hop_length": 53,
        "patch_frames": 8,
    },
}
"""For clips of `datasets.py`."""
SPACE: dict[str, Any] = {
    "objective.refinement": {"choice": ["mean", "none"]},
    "objective.distillation_weight": {"loguniform": [0.01, 1.0]},
    "model.encoder.depth": {"integer": [2, 4]},
    "optimizer.video_momentum": {
        "uniform": [0.9, 0.999],
        "when": {"objective.refinement": "mean"},
    },
}


def sweep_config(folder: Path, **changes: Any) -> SweepConfig:
    values: dict[str, Any] = {
        "name": "example",
        "dataset": str(folder / "clips"),
        "output": str(folder),
        "pretrain": PRETRAIN,
        "space": SPACE,
        "search": {"num_trials": 14, "startup_trials": 4},
    }
    return SweepConfig.model_validate(values | changes)


def rungs_to(last: int, quality: float, *, collapse: tuple[str, ...] = ()) -> tuple[Rung, ...]:
    """Scores that rise with the rung and the quality of the settings."""
    return tuple(
        Rung(
            rung=rung,
            step=rung * 10,
            epoch=rung * 2.0,
            scores={
                "video/knn": 0.2 + 0.05 * rung * quality,
                "video/linear": 0.3 + 0.05 * rung * quality,
                "audio/knn": 0.5 + 0.05 * rung * (1 - quality / 2),
                "audio/linear": 0.6 + 0.05 * rung * (1 - quality / 2),
            },
            num_test=75,
            collapse=collapse if rung == last else (),
        )
        for rung in range(last + 1)
    )


def example_trials(config: SweepConfig, count: int = 14) -> list[Trial]:
    """Trials as this sweep would suggest them, some of which did not complete."""
    trials: list[Trial] = []
    for number in range(count):
        values = suggestion(config, trials, number)
        quality = float(values["objective.distillation_weight"]) ** 0.5
        if number % 7 == 5:
            sign = ("video effective rank 1.1 below 1.5",)
            rungs = rungs_to(2, quality, collapse=sign)
            trials.append(Trial(number, values, rungs, "collapsed", f"at rung 2: {sign[0]}"))
        elif number % 7 == 6:
            trials.append(Trial(number, values, (), "failed", "<b>step 3</b> is not finite"))
        elif number % 3 == 1:
            reason = "at rung 1 of 4 by asha"
            trials.append(Trial(number, values, rungs_to(1, quality), "stopped", reason))
        else:
            trials.append(Trial(number, values, rungs_to(4, quality), "completed"))
    return trials


def example_record(folder: Path, **changes: Any) -> SweepRecord:
    config = sweep_config(folder, **changes)
    trials = example_trials(config, min(14, num_trials(config)))
    best = best_trial(config, trials)
    assert best is not None
    result = SweepResult(folder, tuple(trials), best)
    run = RunRef("http://me:secret@mlflow.example:5000", "1", "abc")
    winner = write_winner(config, result)
    return SweepRecord(config, result, run, winner, 600.0, "made14", "test")
