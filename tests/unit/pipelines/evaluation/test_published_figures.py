"""Every file of `conf/evaluate/` measures what it says, on small trees in the official layout."""

from pathlib import Path

import mlflow
import pytest

from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.ingest import IngestSettings
from pipelines.evaluation.checks import check_evaluate, networks_to_score
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.networks import checkpoint_source
from pipelines.evaluation.official import OfficialShare
from pipelines.evaluation.scores_file import read_scores
from pipelines.ingest.ingest import ingest
from ray_jobs.cli.settings import load_settings
from tests.helpers.encoders import write_checkpoint
from tests.helpers.published_trees import write_tree

CONF = Path(__file__).resolve().parents[4] / "conf" / "evaluate"
FILES = sorted(file for file in CONF.glob("*.yaml") if file.stem != "smoke")
FOLDS = {"ucf101": 3, "hmdb51": 3, "esc50": 5}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_measures_the_figure_that_its_header_names(file):
    config = load_settings(EvaluateConfig, file, [])
    header = file.read_text().partition("\nname:")[0]
    assert config.paper
    for figure in config.paper:
        assert figure.measure in config.measures
        assert figure.subject in ("video", "audio", *config.fusion)
        assert f"{figure.value:g}" in header
    assert f"dataset={config.official.dataset}" in header or "labels=folder" in header
    assert config.selection == "validation"
    assert (config.official.lists is not None) == (config.official.dataset in FOLDS)


def ingested(config, tree, folder):
    """Ingests a tree as the header of the file says, at the size of the tests' encoders."""
    name = config.official.dataset
    small = {"short_side": 32, "sample_rate": 4000, "segment_seconds": 2.0}
    named = {"labels": "folder"} if name == "hmdb51" else {"dataset": name}
    settings = IngestSettings.model_validate(small | named | {"min_source_seconds": 0.25})
    ingest(str(tree), str(folder), settings, on_progress=lambda *_: None)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_small_tree_is_scored_and_a_missing_file_is_marked(file, tmp_path, local_ray):
    config = load_settings(EvaluateConfig, file, [])
    tested = write_tree(config.official.dataset, tmp_path / "tree")
    tested[0].unlink()
    ingested(config, tmp_path / "tree", tmp_path / "clips")
    checkpoint = write_checkpoint(tmp_path / "run")
    values = config.model_dump() | {
        "checkpoint": str(checkpoint),
        "dataset": str(tmp_path / "clips"),
        "output": str(tmp_path / "out"),
        "use_gpu": False,
        "attentive_steps": 5,
        "finetune": config.finetune.model_dump()
        | {"epochs": 1, "warmup_epochs": 0, "batch_size": 4},
        "tracking": {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"},
    }
    if config.official.lists:
        values["official"]["lists"] = str(tmp_path / "tree")
    config = EvaluateConfig.model_validate(values)
    sources = (checkpoint_source(checkpoint, str(checkpoint), "teacher"),)
    networks = networks_to_score(config, sources, ())
    assert check_evaluate(config, networks) == []
    found = evaluate(config, networks, on_progress=lambda *_: None)
    scores = read_scores(found.scores_file)
    for figure in config.paper:
        network = scores.found.modalities[figure.subject]["trained"]
        one = network.measures[figure.measure]
        assert 0 <= one.score.value <= 1
        assert one.score.low is not None
        assert len(one.folds) == (FOLDS.get(config.official.dataset, 0))
    share = OfficialShare.from_json(dict(scores.official))
    assert share.present_test == share.listed_test - 1
    assert any("test sources" in mark for mark in scores.marks)
    mlflow.set_tracking_uri(None)
