"""What an evaluation refuses before it starts."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.config.evaluate import EvaluateConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import UserError
from pipelines.evaluation import checks
from pipelines.evaluation import evaluate as job
from pipelines.evaluation.checks import networks_to_score
from pipelines.evaluation.classifiers import score
from pipelines.evaluation.evaluate import log_figures
from pipelines.evaluation.features import features_of
from pipelines.evaluation.networks import checkpoint_source, network_of
from pipelines.evaluation.retrieval import retrieval_gains, retrieval_scores
from pipelines.evaluation.scores import FeatureScores
from pipelines.models.checkpoints import TrainingInfo, checkpoint_name, save_checkpoint
from pipelines.report.run_pictures import galleries
from pipelines.report.run_report import _maps, _shown_clips
from tests.helpers.clip_datasets import write_dataset
from tests.helpers.tracking import run_at
from tests.helpers.training import MODEL, tiny_config
from xkd_core.xkd import build_xkd


def quiet(*_):
    """Where progress goes."""


def evaluate_config(tmp_path, model=MODEL, **settings):
    """An evaluation of a checkpoint without weights, on clips of 4 frames/s and 800 Hz."""
    trained = tiny_config(tmp_path, tmp_path, model=model)
    info = TrainingInfo(1, 1, 1.0, trained.model_dump(mode="json"), "clips", "run", "code")
    checkpoint = tmp_path / "run" / checkpoint_name(1)
    save_checkpoint(checkpoint, {}, {}, info)
    clips = tmp_path / "clips"
    if not clips.exists():
        write_dataset(clips, 8, split=lambda i: "test" if i % 4 == 0 else "train")
    values = {"checkpoint": str(checkpoint), "dataset": str(clips), "output": str(tmp_path / "out")}
    return EvaluateConfig.model_validate(values | settings)


def sources_of(config):
    """The encoders of an evaluation of a checkpoint."""
    (checkpoint,) = config.checkpoint
    found = (checkpoint_source(Path(checkpoint), checkpoint, config.role),)
    return networks_to_score(config, found, ())


def check_evaluate(config):
    return checks.check_evaluate(config, sources_of(config))


def test_clips_of_another_rate_are_refused(tmp_path):
    assert check_evaluate(evaluate_config(tmp_path)) == []
    sharp = {**MODEL["audio"], "sample_rate": 1600, "num_samples": 3200, "hop_length": 68}
    config = evaluate_config(tmp_path, {**MODEL, "audio": sharp})
    (mistake,) = check_evaluate(config)
    message = r"does not fit .*: model.audio.sample_rate \(1600\) must equal the clips'"
    with pytest.raises(UserError, match=message):
        job.evaluate(config, sources_of(config), on_progress=quiet)
    assert str(config.dataset) in mistake


def test_splits_without_a_clip_are_refused(tmp_path):
    config = evaluate_config(tmp_path, train_splits=["fit"], test_splits=["held"])
    (mistake,) = check_evaluate(config)
    assert mistake.endswith("test_splits (fit, held); its splits: test, train")


def test_the_main_job_scores_nothing_where_no_clip_lies_in_its_splits(tmp_path):
    """Its report, with all else, is worth more than a mistake after the training."""
    config = evaluate_config(tmp_path, train_splits=["fit"], test_splits=["held"])
    trained = tiny_config(tmp_path, tmp_path)
    networks = {"trained": network_of(build_xkd(trained.model).eval(), trained.model, "teacher")}
    dataset = ClipDataset.open(config.dataset)
    features = features_of(networks, dataset, config, quiet)
    assert features.matrices["video/trained"].shape == (0, 32)
    assert features.retrieval["audio/trained"].shape == (0, 64)
    scores = score(features, config)
    assert scores.reason == "no clip lies in a split that is scored"
    assert scores.modalities == {}
    assert _shown_clips(features) == _maps(features) == []
    assert galleries(dataset, trained, features, config) == []


def test_tokens_that_do_not_fit_are_refused(tmp_path):
    config = evaluate_config(tmp_path, measures=["attentive"], max_tokens_gb=1e-6)
    (mistake,) = check_evaluate(config)
    assert mistake.startswith("measures (attentive) would keep 0.0 GB of tokens of 8 clips")
    assert check_evaluate(evaluate_config(tmp_path, measures=["attentive"])) == []


def test_an_encoder_gives_tokens_and_layers_that_are_scored(tmp_path):
    """Retrieval takes one clip of each source that has both modalities."""
    config = evaluate_config(tmp_path, measures=["knn", "attentive", "layers", "retrieval"])
    trained = tiny_config(tmp_path, tmp_path)
    networks = {"trained": network_of(build_xkd(trained.model).eval(), trained.model, "teacher")}
    dataset = ClipDataset.open(config.dataset)
    features = features_of(networks, dataset, config, quiet)
    depth = min(config.num_layers, trained.model.encoder.depth)
    layers = features.layers["video/trained"]
    assert layers.shape == (8, depth * 32)
    assert (layers[:, -32:] == features.matrices["video/trained"]).all()
    tokens = features.tokens["audio/trained"].astype(float)
    expected = features.matrices["audio/trained"]
    assert abs(tokens.mean(axis=1) - expected).max() < 1e-2


def test_mlflow_takes_the_figures_of_retrieval_and_their_gains(tmp_path):
    ranks = {
        f"{way}/{network}": np.arange(12) % (3 if network == "trained" else 7) + 1.0
        for way in ("audio_to_video", "video_to_audio")
        for network in ("trained", "untrained")
    }
    gains, scores = retrieval_gains(ranks), retrieval_scores(ranks, (6,))
    run = run_at(tmp_path)
    log_figures(run, FeatureScores((), 0, 12, "no labels", {}, gains, scores))
    logged = run.client().get_run(run.run_id).data.metrics
    way = "evaluation/audio_to_video"
    assert logged[f"{way}/trained/retrieval/recall_at_1"] == pytest.approx(4 / 12)
    assert logged[f"{way}/trained/retrieval/recall_at_5_of_6"] == 1
    assert logged[f"{way}/gain/retrieval/recall_at_1"] == pytest.approx(2 / 12)
    assert logged[f"{way}/gain/retrieval/recall_at_1/low"] < 2 / 12
