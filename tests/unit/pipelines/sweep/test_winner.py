"""The winner of a sweep is written as a configuration that trains it."""

import pytest
import yaml

from pipelines.config.pretrain import PretrainConfig
from pipelines.sweep.sweep import SweepResult
from pipelines.sweep.trial_files import Trial
from pipelines.sweep.winner import write_winner
from ray_jobs.cli.settings import load_settings
from tests.helpers.sweeps import example_record, rungs_to, sweep_config


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return example_record(tmp_path_factory.mktemp("sweep"))


def test_the_winner_is_a_configuration_that_runs(record):
    config = load_settings(PretrainConfig, record.winner, [])
    values = record.result.best.values
    assert config.objective.distillation_weight == values["objective.distillation_weight"]
    assert config.model.encoder.depth == values["model.encoder.depth"]
    assert config.epochs == 8
    assert config.dataset == str(record.result.folder / "clips")
    assert f"python -m ray_jobs.pretrain {record.winner}" in record.winner.read_text()


@pytest.mark.parametrize(
    ("uri", "kept", "note"),
    [
        ("http://mlflow.example:5000", "http://mlflow.example:5000", ""),
        ("http://me:secret@mlflow.example:5000", None, "(http://***@mlflow.example:5000); no pass"),
    ],
)
def test_the_winner_logs_where_the_sweep_did(tmp_path, uri, kept, note):
    record = example_record(tmp_path, tracking={"uri": uri, "experiment": "mine"})
    config = load_settings(PretrainConfig, record.winner, [])
    assert (config.tracking.uri, config.tracking.experiment) == (kept, "mine")
    text = record.winner.read_text()
    assert note in text
    assert "secret" not in text


def test_the_winner_has_the_final_length(tmp_path):
    config = sweep_config(tmp_path, final={"epochs": 40})
    best = Trial(0, {"objective.refinement": "none"}, rungs_to(4, 0.5), "completed")
    file = write_winner(config, SweepResult(tmp_path, (best,), best))
    assert yaml.safe_load(file.read_text())["epochs"] == 40
