"""A space is checked before anything starts: unknown settings, ends that are not valid, pairs."""

import json
import re
from pathlib import Path

import pytest
import yaml

from pipelines.config.sweep import SweepConfig
from pipelines.errors import UserError
from pipelines.files import locked
from pipelines.sweep.checks import check_sweep, sweep_folder
from pipelines.sweep.space import overlaps
from pipelines.sweep.space_checks import space_mistakes
from pipelines.sweep.trial_files import Trial
from pipelines.tracking.run_folder import LOCK_FILE, RUN_FILE, RunFolder
from pipelines.tracking.runs import RunRef
from ray_jobs.cli.settings import load_settings
from ray_jobs.sweep import _sweep_run, final_config, plan, work
from tests.helpers.clip_datasets import rename_dataset, write_dataset

CONF = Path(__file__).resolve().parents[3] / "conf" / "sweep"


def mistakes(space, *overrides):
    config = load_settings(SweepConfig, CONF / "smoke.yaml", [f"space={space}", *overrides])
    return space_mistakes(config)


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_spaces_of_the_configurations_are_valid(file):
    assert space_mistakes(load_settings(SweepConfig, file, [])) == []


def test_all_mistakes_of_a_space_are_told_at_once():
    found = mistakes(
        "{objective.alignment_wieght: {uniform: [0, 1]},"
        " model.video.mask_ratio: {uniform: [0.5, 1.2]},"
        " optimizer.warmup_epochs: {integer: [0, 9]},"
        " ablation: {bundles: {a: {objective.refinement: nope}, b: {use_gpu: true}}},"
        " num_workers: {choice: [1, 2]},"
        " parallelism: {choice: [ddp, fsdp]},"
        " max_seconds: {choice: [60]}}"
    )
    for part in (
        "alignment_wieght is not a setting; did you mean objective.alignment_weight?",
        "space.model.video.mask_ratio at 1.2: model.video.mask_ratio (1.2)",
        "at 9: optimizer.warmup_epochs (9) must not be above epochs (4)",
        "space.ablation at a: objective.refinement ('nope')",
        "space.ablation: use_gpu must be set under pretrain",
        "space.num_workers: num_workers must be set under pretrain",
        "space.parallelism: parallelism must be set under pretrain",
        "space.max_seconds: max_seconds must not be set in a sweep",
    ):
        assert sum(part in mistake for mistake in found) == 1, part
    assert len(found) == 8


def test_settings_that_do_not_go_together_are_found():
    weights = ", ".join(
        f"objective.{term}_weight: {{choice: [0, 1]}}"
        for term in ("reconstruction", "alignment", "distillation")
    )
    (mistake,) = mistakes(f"{{{weights}}}")
    assert "must not all be 0" in mistake
    assert "space has combinations that are not valid" in mistake


WEIGHT = "objective.alignment_weight"
BUNDLES = f"ablation: {{bundles: {{all: {{}}, zero: {{{WEIGHT}: 0.0}}, less: {{{WEIGHT}: 0.1}}}}}}"


@pytest.mark.parametrize(
    "space",
    [
        f"{BUNDLES}, {WEIGHT}: {{uniform: [0.1, 1]}}",
        f"{WEIGHT}: {{uniform: [0.1, 1]}}, {BUNDLES}",
        f"{BUNDLES}, {WEIGHT}: {{uniform: [0.1, 1], when: {{ablation: [all, zero]}}}}",
    ],
)
def test_entries_that_would_override_each_other_are_refused(space):
    (mistake,) = mistakes(f"{{{space}}}")
    assert "ablation" in mistake
    assert f"both set {WEIGHT}, where the later one would win" in mistake
    assert mistake.endswith(f"write {WEIGHT} after ablation, with `when: {{ablation: [all]}}`")


def test_a_section_and_a_setting_in_it_are_refused():
    (mistake,) = mistakes(
        f"{{objective: {{choice: [{{alignment_weight: 0.5}}]}}, {WEIGHT}: {{uniform: [0.1, 1]}}}}"
    )
    assert mistake.startswith(f"space.objective and space.{WEIGHT} both set {WEIGHT}")
    assert mistake.endswith("keep one of them, or keep them apart with `when`")


@pytest.mark.parametrize(
    "entry",
    [
        f"{WEIGHT}: {{uniform: [0.1, 1], when: {{ablation: all}}}}",
        f"seed: {{choice: [0, 1], when: {{ablation: all}}}},"
        f" {WEIGHT}: {{uniform: [0.1, 1], when: {{seed: 1}}}}",
        f"{WEIGHT}s: {{bundles: {{low: {{{WEIGHT}: 0.1}}}}, when: {{ablation: all}}}}",
        "objective.alignment: {choice: [a]}",
    ],
)
def test_entries_that_exclude_each_other_are_taken(entry):
    config = load_settings(SweepConfig, CONF / "smoke.yaml", [f"space={{{BUNDLES}, {entry}}}"])
    assert overlaps(config.space) == []


def test_paths_of_options_must_not_depend_on_the_working_directory():
    assert mistakes("{exclude: {choice: [null, /lists/some.txt]}}") == []
    (mistake,) = mistakes("{leaks: {bundles: {all: {}, few: {exclude: some.txt}}}}")
    assert mistake == "space.leaks: exclude (some.txt) must be an absolute path in a space"


def test_the_spaces_of_the_readme_are_valid():
    text = (CONF.parents[1] / "pipelines/sweep/README.md").read_text()
    (space,) = re.findall(r"```yaml\nspace:\n(.*?)```", text, re.DOTALL)
    values = load_settings(SweepConfig, CONF / "smoke.yaml", []).model_dump()
    config = SweepConfig.model_validate(values | {"space": yaml.safe_load(space)})
    assert space_mistakes(config) == []


def test_the_final_length_is_checked_too():
    (mistake,) = mistakes("{seed: {choice: [0, 1]}}", "final={epochs: 0.5}")
    assert "final.epochs: optimizer.warmup_epochs (1) must not be above epochs (0.5)" in mistake


def test_the_final_training_is_named_by_what_it_trains(tmp_path):
    def name(values, *overrides):
        config = load_settings(SweepConfig, CONF / "smoke.yaml", ["final={epochs: 8}", *overrides])
        return final_config(config, Trial(0, values), tmp_path).name

    one, other = {"objective.refinement": "mean"}, {"objective.refinement": "none"}
    assert name(one) == name(one, "pretrain.log_every=7")
    assert len({name(one), name(other), name(one, "final.epochs=9")}) == 3


def test_a_second_sweep_of_that_name_is_refused(tmp_path):
    config = load_settings(SweepConfig, CONF / "smoke.yaml", [f"output={tmp_path}"])
    folder = sweep_folder(config)
    folder.mkdir()
    with (
        locked(folder / LOCK_FILE, "the first"),
        pytest.raises(UserError, match=r"sweep \(.*/smoke-sweep\) is being written by process"),
    ):
        work(config)


def begun(folder, monkeypatch, *overrides):
    """A sweep that has opened its run, and what it then has written down."""
    monkeypatch.setattr(
        "pipelines.tracking.run_folder.open_run", lambda *_, **__: RunRef("uri", "0", "run")
    )
    clips = folder / "clips"
    if not clips.exists():
        write_dataset(clips, 12, split=lambda i: "test" if i % 4 == 0 else "train")
    paths = [f"output={folder}", f"dataset={clips}"]
    config = load_settings(SweepConfig, CONF / "smoke.yaml", [*paths, *overrides])
    sweep_folder(config).mkdir(exist_ok=True)
    _sweep_run(config, RunFolder(sweep_folder(config)))
    return config, (sweep_folder(config) / RUN_FILE).read_text()


def test_the_password_of_the_server_is_not_written_down(tmp_path, monkeypatch):
    written = begun(tmp_path, monkeypatch, "tracking.uri=http://me:p@ss@mlflow.example:5000")[1]
    assert "ss@" not in written
    assert "http://***@mlflow.example:5000" in written


def test_a_sweep_keeps_the_clips_that_it_began_with(tmp_path, monkeypatch):
    config, written = begun(tmp_path, monkeypatch)
    assert json.loads(written)["dataset_ids"] == {"dataset": "made12"}
    rename_dataset(tmp_path / "clips", "other")
    again = begun(tmp_path, monkeypatch)[1]
    assert json.loads(again)["dataset_ids"] == {"dataset": "made12"}
    found = [mistake for mistake in plan(config).mistakes if "other" in mistake]
    assert found == [mistake for mistake in check_sweep(config) if "other" in mistake]
    assert len(found) == 1


def test_a_sweep_of_an_earlier_version_gets_the_clips_of_now(tmp_path, monkeypatch):
    config, written = begun(tmp_path, monkeypatch)
    values = json.loads(written)
    ids = values.pop("dataset_ids")
    (sweep_folder(config) / RUN_FILE).write_text(json.dumps(values))
    assert json.loads(begun(tmp_path, monkeypatch)[1]) == values | {"dataset_ids": ids}
