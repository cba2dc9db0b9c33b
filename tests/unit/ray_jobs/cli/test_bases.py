"""`base:` in configuration files: what merges over what, and every way to get it wrong."""

from pathlib import Path

import pytest

from pipelines.config.pretrain import PretrainConfig
from pipelines.config.run import RunConfig
from pipelines.config.sweep import SweepConfig
from pipelines.errors import UserError
from ray_jobs.cli.settings import load_settings

RECIPE = (
    "epochs: 40\nbatch_size: 8\nsplits: [a, b]\n"
    "model: {encoder: {width: 96, depth: 3, num_heads: 3}}\n"
)


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def pretrain(folder: Path, text: str, *overrides: str) -> PretrainConfig:
    write(folder, job=f"name: x\ndataset: /clips\noutput: /out\n{text}")
    return load_settings(PretrainConfig, folder / "job.yaml", overrides)


def test_bases_merge_in_order_then_the_file_then_the_overrides(tmp_path):
    write(tmp_path, recipe=RECIPE, more="batch_size: 16\nmodel: {encoder: {depth: 2}}\n")
    config = pretrain(
        tmp_path,
        "base: [recipe.yaml, more.yaml]\nsplits: [c]\nmodel: {encoder: {num_heads: 2}}\n",
        "epochs=50",
    )
    assert (config.epochs, config.batch_size) == (50, 16)
    assert config.splits == ("c",)  # a list is replaced
    encoder = config.model.encoder
    assert (encoder.width, encoder.depth, encoder.num_heads) == (96, 2, 2)


def test_a_base_of_a_section_goes_over_one_of_the_top_and_is_relative_to_its_file(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    write(tmp_path, recipe=RECIPE, top="output: /out\npretrain: {epochs: 35, seed: 7}\n")
    write(folder, job="name: x\nbase: ../top.yaml\npretrain: {base: ../recipe.yaml}\n")
    config = load_settings(RunConfig, folder / "job.yaml", [])
    assert (config.output, config.pretrain.epochs, config.pretrain.seed) == ("/out", 40, 7)


def test_a_section_inside_a_base_and_an_interpolation_over_files(tmp_path):
    write(tmp_path, enc="width: 48\ndepth: 2\nnum_heads: 2\n", more="log_every: ${batch_size}\n")
    config = pretrain(
        tmp_path,
        "base: more.yaml\nepochs: 30\nbatch_size: 4\nmodel: {encoder: {base: enc.yaml}}\n",
    )
    assert (config.model.encoder.width, config.log_every) == (48, 4)


def test_a_value_of_a_base_can_be_replaced_by_one_of_another_shape(tmp_path):
    write(tmp_path, recipe=RECIPE + "num_workers: 2\n")
    assert pretrain(tmp_path, "base: recipe.yaml\nnum_workers: [1, 2]\n").num_workers == (1, 2)
    assert pretrain(tmp_path, "base: recipe.yaml\nhealth: {knn: {max_clips: 3}}\n").health.knn
    write(tmp_path, recipe=RECIPE + "health: {knn: {max_clips: 3}}\n")
    assert pretrain(tmp_path, "base: recipe.yaml\nhealth: {knn: null}\n").health.knn is None


def test_a_bundle_of_a_sweep_may_be_called_base(tmp_path):
    write(tmp_path, recipe=RECIPE)
    write(
        tmp_path,
        job="name: x\ndataset: /clips\noutput: /out\npretrain: {base: recipe.yaml}\n"
        "space: {ablation: {bundles: {base: {}, more: {seed: 1}}}}\nsearch: {kind: grid}\n",
    )
    config = load_settings(SweepConfig, tmp_path / "job.yaml", [])
    assert set(config.space["ablation"].bundles) == {"base", "more"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: recipes.yaml", r"base \(recipes\.yaml\) does not exist; .* has .*recipe\.yaml"),
        ("base: [recipe.yaml, ../no.yaml]", r"base \(\.\./no\.yaml\) does not exist"),
        ("base: list.yaml", r"base \(list\.yaml\) must hold keys and values"),
        ("base: broken.yaml", r"base \(broken\.yaml\) is not readable YAML"),
        ("base: 3", r"base \(3\) must be a YAML file, or a list of them"),
        ("base: null", r"base \(None\) must be a YAML file, or a list of them"),
        ("base: {a: b}", r"base \(\{'a': 'b'\}\) must be a YAML file, or a list of them"),
        ("base: [[recipe.yaml]]", r"base \(\['recipe\.yaml'\]\) must be a YAML file"),
        ("base: chained.yaml", r"base \(chained\.yaml\) must not have a base itself, but has base"),
        ("base: inner.yaml", r"but has model\.encoder\.base: list both files in job\.yaml"),
        ("model: {base: nowhere.yaml}", r"model\.base \(nowhere\.yaml\) does not exist"),
        ("base: .", r"base \(\.\) does not exist"),
    ],
)
def test_a_bad_base_is_one_line_that_names_it(tmp_path, text, message):
    write(
        tmp_path,
        recipe=RECIPE,
        list="- 1\n",
        broken="a: [",
        chained="base: recipe.yaml\n",
        inner="model: {encoder: {base: recipe.yaml}}\n",
    )
    with pytest.raises(UserError, match=message) as caught:
        pretrain(tmp_path, text + "\n")
    assert "\n" not in str(caught.value)
    assert "job.yaml" in str(caught.value)


def test_a_mistake_in_a_base_names_its_file(tmp_path):
    write(tmp_path, recipe=RECIPE + "epoch: 3\nlog_every: 0\noptimzer: {learning_rate: 1}\n")
    with pytest.raises(UserError) as caught:
        pretrain(tmp_path, "base: recipe.yaml\nsede: 1\n")
    lines = str(caught.value).splitlines()
    where = f"(in {tmp_path}/recipe.yaml)"
    assert lines[0].endswith("job.yaml: 4 mistakes")
    reported = {line.split()[0]: line.endswith(where) for line in lines[1:]}
    assert reported == {"epoch": True, "log_every": True, "optimzer": True, "sede": False}


def test_a_mistake_that_replaces_a_value_of_a_base_is_not_laid_to_it(tmp_path):
    write(tmp_path, recipe=RECIPE)
    with pytest.raises(UserError) as caught:
        pretrain(tmp_path, "base: recipe.yaml\nbatch_size: many\n", "epochs=0")
    assert "recipe.yaml" not in str(caught.value)


def test_a_base_on_the_command_line_is_refused(tmp_path):
    write(tmp_path, recipe=RECIPE)
    with pytest.raises(UserError, match=r"base can only be set in a file"):
        pretrain(tmp_path, "base: recipe.yaml\n", "base=recipe.yaml")


def test_the_old_name_of_a_setting_is_told_with_the_new_one(tmp_path):
    write(tmp_path, job="name: x\noutput: /out\nmade: {num_clips: 20}\n")
    with pytest.raises(UserError, match=r"made is not a setting; it is called synthetic now"):
        load_settings(RunConfig, tmp_path / "job.yaml", ["pretrain={epochs: 40, batch_size: 8}"])
