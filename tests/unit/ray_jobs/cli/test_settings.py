"""Settings: every file in `conf/` is valid, and every mistake is named in words, all at once."""

from pathlib import Path

import pytest
import yaml

from pipelines.config.describe import setting_descriptions
from pipelines.config.embed import EmbedConfig
from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.import_checkpoint import ImportConfig
from pipelines.config.ingest import IngestConfig
from pipelines.config.mistakes import mistakes_in
from pipelines.config.pretrain import PretrainConfig, PretrainSettings
from pipelines.config.promote import DemoteConfig, PromoteConfig
from pipelines.config.run import RunConfig
from pipelines.config.suite import SuiteConfig
from pipelines.config.sweep import SweepConfig
from pipelines.config.written import write_settings
from pipelines.errors import UserError
from ray_jobs.cli.settings import load_settings

CONF = Path(__file__).resolve().parents[4] / "conf"
SCHEMAS = {
    "run": RunConfig,
    "ingest": IngestConfig,
    "pretrain": PretrainConfig,
    "evaluate": EvaluateConfig,
    "suite": SuiteConfig,
    "promote": PromoteConfig,
    "demote": DemoteConfig,
    "sweep": SweepConfig,
    "embed": EmbedConfig,
}
PARTS = {"recipe": PretrainSettings, "hardware": PretrainSettings}
"""Folders of files that others name as their `base`."""
FILES = sorted(file for file in CONF.rglob("*.yaml") if file.parent.name not in PARTS)


def test_every_job_has_a_smoke_configuration():
    assert {file.parent.name for file in FILES if file.name == "smoke.yaml"} == set(SCHEMAS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_configuration_file_is_valid(file):
    config = load_settings(SCHEMAS[file.parent.name], file, [])
    assert config.name


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_configuration_file_opens_with_its_command(file):
    job = file.parent.name
    header = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any(f"python -m ray_jobs.{job} conf/{job}/{file.name}" in line for line in header)


@pytest.mark.parametrize("folder", PARTS)
def test_parts_are_settings_of_a_section_that_a_job_uses(folder):
    """A part alone lacks what is required, but has no key that its section does not have."""
    used = "".join(file.read_text() for file in FILES)
    for file in sorted((CONF / folder).glob("*.yaml")):
        whole = {"epochs": 100, "batch_size": 64} | yaml.safe_load(file.read_text())
        assert mistakes_in(whole, PARTS[folder]) == [], file
        assert f"../{folder}/{file.name}" in used
        assert file.read_text().startswith("# ")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_resolved_settings_are_a_configuration_with_the_same_result(file, tmp_path):
    config = load_settings(SCHEMAS[file.parent.name], file, [])
    written = write_settings(tmp_path / "config.yaml", config)
    assert load_settings(type(config), written, []) == config


def test_resolved_settings_keep_odd_paths_and_no_password(tmp_path):
    odd = f"{tmp_path}/a ${{b}} 'c': d"
    server = "tracking.uri=http://me:secret@host:5000"
    config = load_settings(IngestConfig, None, [f"input={odd}", "output=/out", server])
    written = write_settings(tmp_path / "config.yaml", config)
    assert load_settings(IngestConfig, written, []).input == odd
    assert "secret" not in written.read_text()
    assert "give tracking.uri again" in written.read_text()


def test_paper_recipe_is_that_of_the_method():
    config = load_settings(PretrainConfig, CONF / "pretrain" / "kinetics400.yaml", [])
    video, audio = config.model.video, config.model.audio
    assert (video.num_tokens, audio.num_tokens) == (392, 560)
    assert (config.epochs, config.batch_size) == (800, 256)
    assert (config.optimizer.learning_rate, config.optimizer.warmup_epochs) == (1e-4, 30)
    agnostic = load_settings(PretrainConfig, CONF / "pretrain" / "kinetics400_mas.yaml", [])
    assert agnostic.views.num_video_locals == 3
    assert agnostic.objective.audio_teacher_temperature.end == 0.06


def test_all_mistakes_are_reported_at_once(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "name: bad name\noutput: x\npretrain:\n  epoch: 3\n  batch_size: many\n"
        "  model: {video: {num_frames: 30}}\n  optimizer: {lr: 1}\n"
    )
    with pytest.raises(UserError) as caught:
        load_settings(RunConfig, file, ["synthetic.num_clips=3"])
    message = str(caught.value)
    for part in (
        "7 mistakes",
        "pretrain.epoch is not a setting; did you mean pretrain.epochs?",
        "pretrain.epochs is missing",
        "pretrain.batch_size ('many')",
        "num_frames (30) must be a multiple of tubelet_size (4)",
        "pretrain.optimizer.lr is not a setting",
        "name ('bad name')",
        "synthetic.num_clips (3)",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("views.crop_ratio.low=0", r"views\.crop_ratio\.low \(0\): .* greater than 0"),
        ("optimizer.betas=[0.9, 1.0]", r"optimizer\.betas\.1 \(1\.0\): .* less than 1"),
        ("epochs=.inf", r"epochs \(inf\): .* finite"),
        ("model.audio.mean=.nan", r"model\.audio\.mean \(nan\): .* finite"),
        ("objective.mmd_gammas=[]", r"objective\.mmd_gammas \(\[\]\) must have at least 1 value"),
    ],
)
def test_what_would_crash_in_a_worker_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        load_settings(PretrainConfig, CONF / "pretrain" / "smoke.yaml", [override])


def test_key_of_another_section_is_found():
    with pytest.raises(UserError, match=r"did you mean pretrain\.model\.encoder\.width\?"):
        load_settings(RunConfig, CONF / "run" / "smoke.yaml", ["width=3"])


def test_override_goes_first_and_paths_stay_text(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("output: there\n")
    config = load_settings(
        IngestConfig, file, [f"input={tmp_path}/a=b: [c]", "segment_seconds=2.5", "output=/2024"]
    )
    assert config.input == f"{tmp_path}/a=b: [c]"
    assert config.segment_seconds == 2.5
    assert config.output == "/2024"


@pytest.mark.parametrize(
    ("content", "override", "message"),
    [
        ("a: [", "x=1", "not readable YAML"),
        ("- 1\n", "x=1", "must hold keys and values"),
        ("output: a\n", "nonsense", r"argument \(nonsense\) must be key=value"),
        ("output: a\n", "output.x=1", "goes through output, which is not a section"),
        ("output: a\noutput: b\n", "x=1", "not readable YAML"),
        ("output: s3://me:pw@a/b\n", "name=x", r"output \(s3://\*\*\*\) must not hold a pass"),
    ],
)
def test_bad_file_or_argument_is_one_clear_error(tmp_path, content, override, message):
    file = tmp_path / "a.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        load_settings(IngestConfig, file, [override])


def test_a_job_without_a_file_takes_overrides_alone():
    config = load_settings(ImportConfig, None, ["file=/a.pth.tar", "video.size=224"])
    assert (config.file, config.video.size) == ("/a.pth.tar", 224)
    with pytest.raises(UserError, match=r"^settings: alias \(v3\) must not be"):
        load_settings(ImportConfig, None, ["file=/a.pth.tar", "alias=v3"])


def test_a_published_dataset_without_its_folder_is_refused_before_clips_are_made():
    message = r"dataset \(esc50\) must come with input"
    with pytest.raises(UserError, match=message):
        load_settings(IngestConfig, CONF / "ingest" / "smoke.yaml", ["dataset=esc50"])
    with pytest.raises(UserError, match=rf"ingest\.{message}"):
        load_settings(RunConfig, CONF / "run" / "smoke.yaml", ["ingest.dataset=esc50"])


def test_missing_file_names_its_neighbours():
    with pytest.raises(UserError, match=r"smok\.yaml\) does not exist; .* has .*smoke\.yaml"):
        load_settings(RunConfig, CONF / "run" / "smok.yaml", [])


def test_relative_output_is_refused_in_a_submitted_job(tmp_path, monkeypatch):
    copy = tmp_path / "_ray_pkg_0123"
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.delenv("XKD_HOME", raising=False)
    (copy / "a.yaml").write_text("output: here\n")
    with pytest.raises(UserError, match=r"output \(here\) is relative, and a submitted job"):
        load_settings(IngestConfig, copy / "a.yaml", [])
    monkeypatch.setenv("XKD_HOME", str(tmp_path))
    assert load_settings(IngestConfig, copy / "a.yaml", []).output == str(tmp_path / "here")


@pytest.mark.parametrize("schema", [*SCHEMAS.values(), ImportConfig])
def test_every_setting_is_listed_for_help(schema):
    names = [setting.name for setting in setting_descriptions(schema)]
    assert "tracking.uri" in names
    assert len(names) == len(set(names))


def test_a_section_that_can_be_left_out_is_described_and_read_as_any_other():
    names = {setting.name: setting.default for setting in setting_descriptions(SweepConfig)}
    assert names["final"] == names["final.epochs"] == "None"
    assert names["final.promote.model_prefix"] == "'xkd'"
    smoke = CONF / "sweep" / "smoke.yaml"
    config = load_settings(SweepConfig, smoke, ["final.promote.model_prefix=2024"])
    assert config.final.promote.model_prefix == "2024"
    with pytest.raises(UserError, match=r"did you mean final\.evaluate\.neighbors\?"):
        load_settings(SweepConfig, smoke, ["final.evaluate.neighbor=3"])


def test_fewer_epochs_than_those_of_the_warm_up_name_both():
    with pytest.raises(UserError) as caught:
        load_settings(RunConfig, CONF / "run" / "smoke.yaml", ["pretrain.epochs=2"])
    assert str(caught.value).endswith(
        "pretrain: optimizer.warmup_epochs (5) must not be above epochs (2); with fewer epochs, "
        "set optimizer.warmup_epochs as well"
    )
