"""What cannot work is said in seconds, with what it needs and what there is."""

import json
import re

import pytest

from pipelines.errors import UserError
from pipelines.sweep.checks import (
    check_sweep,
    dataset_ids,
    scored_split,
    sweep_folder,
    trials_at_once,
)
from pipelines.training.checks import EARLIER_SETTINGS
from tests.helpers.clip_datasets import rename_dataset, write_dataset
from tests.helpers.sweeps import PRETRAIN, TINY_MODEL, sweep_config


def asking(tmp_path, workers, cpus, **changes):
    pretrain = {**PRETRAIN, "num_workers": workers, "cpus_per_worker": cpus, "batch_size": 12}
    pretrain |= {"use_gpu": changes.pop("use_gpu", False)}
    return sweep_config(tmp_path, pretrain=pretrain, **changes)


@pytest.mark.parametrize(
    ("workers", "cpus", "nodes", "fit"),
    [
        (1, 1, [{"CPU": 2}], 2),
        (2, 1, [{"CPU": 5}], 2),
        (1, 2, [{"CPU": 3}, {"CPU": 3}], 2),  # the third CPUs do not make a trial
        (3, 2, [{"CPU": 4}, {"CPU": 2}], 1),  # workers of one trial may lie on several nodes
        (1, 1, [{"CPU": 4, "memory": 3.4e9}], 2),  # drivers of trials need some too
        (1, 1, [{"CPU": 1, "memory": 2.7e9}, {"CPU": 3, "memory": 1.2e9}], 1),
        (1, 0.5, [{"CPU": 100}], 14),  # no more than there are trials
    ],
)
def test_as_many_trials_as_fit(tmp_path, workers, cpus, nodes, fit):
    assert trials_at_once(asking(tmp_path, workers, cpus), nodes) == fit


def test_gpus_count_where_they_are_used(tmp_path):
    config = asking(tmp_path, 2, 1, use_gpu=True)
    assert trials_at_once(config, [{"CPU": 16, "GPU": 4}]) == 2
    with pytest.raises(UserError, match=r"needs 2 x 1 CPU and 2 x 1 GPU, but Ray has 16 CPUs"):
        trials_at_once(config, [{"CPU": 16}])


def test_too_many_at_once_is_told_with_what_fits(tmp_path):
    config = asking(tmp_path, 2, 1, max_concurrent_trials=3)
    with pytest.raises(UserError, match=r"needs 3 x 2 CPUs, has 4 CPUs: at most 2 trials at once"):
        trials_at_once(config, [{"CPU": 4}])
    with pytest.raises(UserError, match=r"a trial needs 2 x 1 CPU, but Ray has 1 CPU"):
        trials_at_once(config, [{"CPU": 1}])


def test_too_little_memory_is_told(tmp_path):
    nodes = [{"CPU": 4, "memory": 1.2e9}]
    message = r"needs 1 x 1 CPU and 1\.5 GB of memory, but Ray has 4 CPUs, 1\.2 GB of memory"
    with pytest.raises(UserError, match=message):
        trials_at_once(asking(tmp_path, 1, 1), nodes)
    message = r"needs 3 x 1 CPU and 3 x 1\.5 GB of memory, has 4 CPUs, 3\.4 GB of memory: at most 2"
    nodes = [{"CPU": 4, "memory": 3.4e9}]
    with pytest.raises(UserError, match=message):
        trials_at_once(asking(tmp_path, 1, 1, max_concurrent_trials=3), nodes)


def checked(tmp_path, clips, **changes):
    config = sweep_config(
        tmp_path, dataset=str(clips), pretrain={**PRETRAIN, "model": TINY_MODEL}, **changes
    )
    return config, check_sweep(config)


def test_clips_that_can_be_scored(tmp_path):
    clips = write_dataset(tmp_path / "clips", 12, split=lambda i: "test" if i % 4 == 0 else "train")
    config, mistakes = checked(tmp_path, clips)
    assert mistakes == []
    assert scored_split(config) == "test"


def test_clips_that_cannot_be_scored(tmp_path):
    silent = write_dataset(
        tmp_path / "silent",
        12,
        split=lambda i: "test" if i % 4 == 0 else "train",
        has_audio=lambda i: i % 4 != 0,
    )
    _, mistakes = checked(tmp_path, silent)
    assert len(mistakes) == 1
    assert (
        "gives no audio score: split test, the first that is there, has no labelled clip"
        in mistakes[0]
    )
    _, mistakes = checked(tmp_path, silent, objective={"modality": "video"})
    assert mistakes == []
    both = write_dataset(
        tmp_path / "both",
        12,
        split=lambda i: ("test", "val", "train", "train")[i % 4],
        has_audio=lambda i: i % 4 != 1,
    )
    _, mistakes = checked(tmp_path, both)  # clips of `test` do not stand in for those of `val`
    assert any("gives no audio score: split val, the first that is" in text for text in mistakes)
    all_train = write_dataset(tmp_path / "all", 12)
    assert len(checked(tmp_path, all_train)[1]) == 2


def test_clips_for_scoring_have_the_rates_of_those_trained_on(tmp_path):
    clips = write_dataset(tmp_path / "clips", 12, split=lambda i: "test" if i % 4 == 0 else "train")
    other = write_dataset(tmp_path / "other", 12, split=lambda i: "test" if i % 4 == 0 else "train")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["settings"]["frame_rate"] = 8.0
    (other / "manifest.json").write_text(json.dumps(manifest))
    _, (mistake,) = checked(tmp_path, clips, scoring={"dataset": str(other)})
    assert mistake.startswith(f"scoring.dataset ({other}): model.video.frame_rate (4) must equal")


FAST = {
    "model.video.frame_rate": 8.0,
    "model.video.num_frames": 8,
    "model.video.local_num_frames": 8,
}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"exclude": {"choice": [None, "/nonexistent"]}},
            r"^space\.exclude at /nonexistent: exclude \(/nonexistent\)",
        ),
        (
            {"splits": {"choice": [["nosuch"], ["train"]]}},
            r"^space\.splits at \['nosuch'\]: dataset .* has no clip .* in split nosuch",
        ),
        (
            {"rate": {"bundles": {"slow": {}, "fast": FAST}}},
            r"^space\.rate at fast: model\.video\.frame_rate \(8\) must equal",
        ),
        (
            {"parts": {"bundles": {"all": {}, "few": {"splits": ["val"]}}}},
            r"^space\.parts at few: dataset .* has no clip .* in split val",
        ),
    ],
)
def test_options_that_the_clips_do_not_fit(tmp_path, space, message):
    clips = write_dataset(tmp_path / "clips", 12, split=lambda i: "test" if i % 4 == 0 else "train")
    _, (mistake,) = checked(tmp_path, clips, space=space, search={"num_trials": 2})
    assert re.search(message, mistake)


def test_what_is_wrong_without_the_space_is_told_once(tmp_path):
    space = {"model.video.mask_ratio": {"uniform": [0.5, 0.7]}}
    _, mistakes = checked(tmp_path, tmp_path / "nothing", space=space, search={"num_trials": 2})
    assert not any(mistake.startswith("space") for mistake in mistakes)


def test_options_that_the_clips_for_scoring_do_not_fit(tmp_path):
    folders = [tmp_path / "clips", tmp_path / "other"]
    for folder in folders:
        write_dataset(folder, 12, split=lambda i: "test" if i % 4 == 0 else "train")
    space = {"rate": {"bundles": {"slow": {}, "fast": FAST}}}
    _, mistakes = checked(
        tmp_path,
        folders[0],
        space=space,
        search={"num_trials": 2},
        scoring={"dataset": str(folders[1])},
    )
    assert len(mistakes) == 2
    assert f"space.rate at fast: scoring.dataset ({folders[1]}): model.video" in mistakes[1]


def test_a_sweep_goes_on_only_with_its_own_settings(tmp_path):
    clips = write_dataset(tmp_path / "clips", 12, split=lambda i: "test" if i % 4 == 0 else "train")
    config, _ = checked(tmp_path, clips)
    folder = sweep_folder(config)
    folder.mkdir()
    there = {"run_id": "a", "config": config.model_dump(mode="json")}
    (folder / "run.json").write_text(json.dumps(there))
    longer = {"num_trials": 20, "startup_trials": 4}
    free = {"search": longer, "max_concurrent_trials": 1, "retry_failed": True}
    assert checked(tmp_path, clips, **free)[1] == []
    _, (mistake,) = checked(tmp_path, clips, search={"num_trials": 14, "seed": 5})
    assert "search.seed is 0 there and 5 here" in mistake
    for name in EARLIER_SETTINGS:  # of a version that did not know them
        del there["config"]["pretrain"][name]
    (folder / "run.json").write_text(json.dumps(there))
    _, (mistake,) = checked(tmp_path, clips)
    assert "pretrain.epoch_unit is segment there and source here" in mistake


@pytest.mark.parametrize("changed", ["dataset", "scoring.dataset"])
def test_a_sweep_goes_on_only_with_its_own_clips(tmp_path, changed):
    folders = {name: tmp_path / name for name in ("dataset", "scoring.dataset")}
    for folder in folders.values():
        write_dataset(folder, 12, split=lambda i: "test" if i % 4 == 0 else "train")
    scoring = {"dataset": str(folders["scoring.dataset"])}
    config, mistakes = checked(tmp_path, folders["dataset"], scoring=scoring)
    assert mistakes == []
    folder = sweep_folder(config)
    folder.mkdir()
    there = {"run_id": "a", "config": config.model_dump(mode="json")}
    (folder / "run.json").write_text(json.dumps({**there, "dataset_ids": dataset_ids(config)}))
    assert check_sweep(config) == []
    rename_dataset(folders[changed], "grown")
    (mistake,) = check_sweep(config)
    assert len(mistake.splitlines()) == 1
    assert mistake.endswith(
        f"all see the same clips: it began with dataset made12, but {changed} ({folders[changed]}) "
        "is grown now. Take another name or restore those clips"
    )
    (folder / "run.json").write_text(json.dumps(there))  # of a version that did not keep them
    assert check_sweep(config) == []


@pytest.mark.parametrize(
    ("changes", "space", "gives"),
    [
        ({"num_workers": 2}, {}, r"num_workers \(2\) and accumulation_steps \(1\) gives 2"),
        ({}, {"accumulation_steps": {"choice": [1, 2]}}, r"accumulation_steps \(2\) gives 2"),
    ],
)
def test_batches_too_small_to_see_a_collapse_are_refused(tmp_path, changes, space, gives):
    clips = write_dataset(tmp_path / "clips", 12, split=lambda i: "test" if i % 4 == 0 else "train")
    space = {"objective.refinement": {"choice": ["mean", "none"]}, **space}
    pretrain = {**PRETRAIN, "model": TINY_MODEL, **changes}
    config = sweep_config(tmp_path, dataset=str(clips), pretrain=pretrain, space=space)
    (mistake,) = check_sweep(config)
    assert re.search(rf"stopping.collapsed \(True\) needs 4 clips .*{gives}", mistake)
    stopping = {"collapsed": False}
    config = sweep_config(
        tmp_path, dataset=str(clips), pretrain=pretrain, space=space, stopping=stopping
    )
    assert check_sweep(config) == []
