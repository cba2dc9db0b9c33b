"""The trials of a sweep begin from versions that no alias moves."""

import re

import pytest

from pipelines.config.run import RunConfig
from pipelines.config.sweep import SweepConfig
from pipelines.errors import UserError
from pipelines.files import write_json
from pipelines.sweep.checks import DATASET_IDS, check_sweep, sweep_folder
from pipelines.sweep.init_versions import INIT_VERSIONS, init_versions, with_versions
from pipelines.sweep.run_trial import trial_config
from pipelines.sweep.search import suggestion
from pipelines.sweep.space_checks import space_mistakes
from pipelines.sweep.trial_files import Trial
from pipelines.sweep.winner import best_values
from pipelines.tracking.run_folder import RUN_FILE
from tests.helpers.clip_datasets import write_dataset
from tests.helpers.training import MODEL, tiny_config
from tests.helpers.weights import earlier_training, register, some_networks

ALIAS, VERSION = "models:/xkd-video@champion", "models:/xkd-video/1"
PRETRAIN = {
    "epochs": 4,
    "batch_size": 4,
    "model": MODEL,
    "optimizer": {"warmup_epochs": 1},
    "init": ALIAS,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("weights")
    model = tiny_config(home, home).model
    register(home, some_networks(model), "video", model, alias="champion")
    earlier_training(home, some_networks(model))
    write_dataset(home / "clips", 24, num_frames=10, split=lambda n: "train" if n % 4 else "val")
    return home


def sweep_at(home, tmp_path, space=None, **pretrain):
    return SweepConfig.model_validate(
        {
            "name": "example",
            "dataset": str(home / "clips"),
            "output": str(tmp_path),
            "tracking": {"uri": f"sqlite:///{home}/mlflow.db"},
            "pretrain": {**PRETRAIN, **pretrain},
            "space": space or {"optimizer.layer_decay": {"choice": [0.5, 1.0]}},
            "search": {"kind": "grid"},
            "scoring": {"num_rungs": 2},
        }
    )


def begin(config):
    values = {
        "config": config.model_dump(mode="json"),
        DATASET_IDS: {},
        INIT_VERSIONS: init_versions(config),
    }
    folder = sweep_folder(config)
    folder.mkdir(parents=True)
    write_json(folder / RUN_FILE, values)


def trial_of(config, number=0):
    return Trial(number, suggestion(config, [], number))


def test_all_trials_and_the_winner_name_the_version(home, tmp_path):
    config = sweep_at(home, tmp_path)
    assert init_versions(config) == {ALIAS: VERSION}
    fixed = with_versions(config, init_versions(config))
    assert trial_config(fixed, tmp_path, trial_of(fixed)).init.source == VERSION
    assert best_values(fixed, trial_of(fixed))["init"] == {"source": VERSION}


def test_init_is_searched_like_any_setting(home, tmp_path):
    checkpoint = str(next((home / "runs/earlier").glob("step_*")))
    space = {"init": {"choice": [None, ALIAS, checkpoint]}}
    config = sweep_at(home, tmp_path, space, init=None)
    fixed = with_versions(config, init_versions(config))
    begins = [trial_config(fixed, tmp_path, trial_of(fixed, n)).init for n in range(3)]
    assert [begun and begun.source for begun in begins] == [None, VERSION, checkpoint]
    assert space_mistakes(fixed) == []
    assert check_sweep(fixed) == []


def test_bundles_and_conditions_name_versions_too(home, tmp_path):
    space = {
        "begin": {"bundles": {"new": {"init": None}, "old": {"init.video": ALIAS}}},
        "init.source": {"choice": [ALIAS], "when": {"begin": "new"}},
    }
    config = sweep_at(home, tmp_path, space, init=None)
    fixed = with_versions(config, init_versions(config))
    assert fixed.space["begin"].bundles["old"] == {"init.video": VERSION}
    assert fixed.space["init.source"].choice == (VERSION,)


def test_a_sweep_that_began_keeps_its_version(home, tmp_path):
    config = sweep_at(home, tmp_path)
    begin(config)
    model = tiny_config(home, home).model
    register(home, some_networks(model, 9), "video", model, alias="champion")
    try:
        assert init_versions(config) == {ALIAS: VERSION}
        assert check_sweep(with_versions(config, init_versions(config))) == []
        other = sweep_at(home, tmp_path, init=None)
        (mistake,) = check_sweep(with_versions(other, init_versions(other)))
        assert f"pretrain.init.source is {VERSION} there and None here" in mistake
    finally:
        register(home, some_networks(model), "video", model, alias="champion")


def test_an_alias_and_its_version_are_one_choice(home, tmp_path):
    config = sweep_at(home, tmp_path, {"init": {"choice": [ALIAS, VERSION]}}, init=None)
    with pytest.raises(UserError, match=rf"each once \({ALIAS} is {VERSION}\)"):
        with_versions(config, init_versions(config))


def test_an_alias_that_does_not_exist_is_one_line(home, tmp_path):
    config = sweep_at(home, tmp_path, init="models:/xkd-video@best")
    with pytest.raises(UserError, match="xkd-video has no alias best, its aliases are: champion"):
        init_versions(config)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"model.encoder.depth": {"choice": [2, 3]}},
            "space.model.encoder.depth at 3: init .* model.encoder.depth is 2 there and 3 here",
        ),
        (
            {"init": {"choice": ["/none"]}},
            r"space.init at /none: init: checkpoint \(/none\) does not exist",
        ),
        (
            {"optimizer.frozen_audio_blocks": {"choice": [0, 1]}},
            r"space.optimizer.frozen_audio_blocks at 1: optimizer.* \(1\) must be 0",
        ),
    ],
)
def test_what_some_trial_cannot_begin_from_is_found_before_all(home, tmp_path, space, message):
    config = with_versions(sweep_at(home, tmp_path, space), {ALIAS: VERSION})
    mistakes = space_mistakes(config) + check_sweep(config)
    assert len(mistakes) == 1
    assert re.search(message, mistakes[0]), mistakes


def test_weights_at_relative_paths_are_refused_in_a_space(home, tmp_path):
    config = sweep_at(home, tmp_path, {"init.source": {"choice": ["runs/one"]}}, init=None)
    (mistake,) = space_mistakes(config)
    assert mistake.endswith("init.source (runs/one) must be an absolute path in a space")


def test_a_frozen_teacher_is_not_what_is_scored(home, tmp_path):
    with pytest.raises(ValueError, match=r"scoring.role \(teacher\) must be student with pretrain"):
        sweep_at(home, tmp_path, objective={"teacher": "frozen"})
    pretrain = {**PRETRAIN, "objective": {"teacher": "frozen"}, "model": {}, "init": None}
    pretrain["optimizer"] = {"warmup_epochs": 1}
    values = {"name": "a", "output": str(tmp_path), "pretrain": pretrain}
    with pytest.raises(
        ValueError, match=r"evaluate.role \(teacher\) must be student with pretrain"
    ):
        RunConfig.model_validate(values)
    both = {"evaluate": {"role": "student"}, "promote": {"role": "student"}}
    RunConfig.model_validate({**values, **both})
