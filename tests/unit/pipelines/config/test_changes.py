"""Which settings may change when a run goes on: the marks say what three lists said."""

import pytest

from pipelines.config.changes import changed_settings, fixed_settings
from pipelines.config.describe import may_change, setting_descriptions
from pipelines.config.ingest import IngestSettings
from pipelines.config.pretrain import PretrainConfig, PretrainSettings
from pipelines.config.run import RunConfig
from pipelines.config.sweep import SweepConfig


@pytest.mark.parametrize(
    ("schema", "name", "is_free"),
    [
        (PretrainConfig, "tracking.uri", True),
        (PretrainConfig, "health.knn.every_epochs", True),
        (PretrainConfig, "health", True),
        (PretrainConfig, "use_gpu", True),
        (PretrainConfig, "precision", False),
        (PretrainConfig, "optimizer.learning_rate", False),
        (PretrainConfig, "nothing.of.this.name", False),
        (SweepConfig, "final", True),
        (SweepConfig, "final.promote.alias", True),
        (SweepConfig, "search.num_trials", True),
        (SweepConfig, "search.seed", False),
        (SweepConfig, "pretrain.log_every", True),
        (SweepConfig, "space.seed.choice", False),
        # On a GPU a training computes in another precision: trials would not be comparable.
        (SweepConfig, "pretrain.use_gpu", False),
        (SweepConfig, "pretrain.health.knn.max_clips", False),
        (IngestSettings, "num_workers", True),
        (IngestSettings, "limits.max_bytes", False),
        (RunConfig, "pretrain.use_gpu", True),
        (RunConfig, "evaluate.neighbors", True),
    ],
)
def test_a_mark_on_a_field_or_its_section_counts(schema, name, is_free):
    assert may_change(schema, name) == is_free


def test_fixed_settings_of_a_training_are_those_that_it_computes_with():
    settings = PretrainSettings(epochs=30, batch_size=4)
    fixed = fixed_settings(PretrainConfig, settings.model_dump(mode="json"))
    assert {"epochs", "batch_size", "seed", "precision", "compile", "exclude"} <= fixed.keys()
    assert not {"use_gpu", "num_workers", "log_every", "health.knn"} & fixed.keys()


def test_a_change_is_told_with_both_values():
    began = {"epochs": 3, "log_every": 1, "health": {"knn": None}}
    now = {"epochs": 4, "log_every": 2, "health": {"knn": {"max_clips": 3}}, "seed": 1}
    assert changed_settings(PretrainConfig, began, now) == [
        "epochs is 3 there and 4 here",
        "seed is None there and 1 here",
    ]


@pytest.mark.parametrize("schema", [PretrainConfig, SweepConfig, RunConfig, IngestSettings])
def test_marks_name_settings_that_there_are(schema):
    marked = [setting.name for setting in setting_descriptions(schema) if setting.may_change]
    assert marked
    sweep = [name for name in marked if name.startswith(("pretrain.", "search."))]
    if schema is SweepConfig:
        assert sweep == ["pretrain.log_every", "pretrain.max_failures", "search.num_trials"]
