"""Scores on the way are the same however often they are taken, and change nothing in training."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from pipelines.config.evaluate import EvaluateSettings
from pipelines.config.pretrain import PretrainConfig
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.evaluation.features import features_of
from pipelines.evaluation.networks import network_of
from pipelines.evaluation.probes.classifiers import score
from pipelines.evaluation.rungs import (
    KnnScorer,
    Rung,
    RungPlan,
    RungScorer,
    add_rung,
    knn_settings,
    read_rungs,
    rung_steps,
)
from pipelines.models.checkpoints import TrainingInfo, checkpoint_name, save_checkpoint
from pipelines.training import state as train_state
from tests.helpers.clip_datasets import write_dataset
from tests.helpers.sweeps import PRETRAIN, TINY_MODEL
from xkd_core.xkd import build_xkd, model_tensors


@pytest.mark.parametrize(("total", "rungs"), [(10, 4), (4, 4), (1000, 3), (7, 1)])
def test_rungs_are_spread_and_the_last_is_at_the_end(total, rungs):
    steps = rung_steps(total, rungs)
    assert list(steps.values()) == list(range(rungs + 1))
    assert next(iter(steps)) == 0
    assert list(steps)[-1] == total
    gaps = [b - a for a, b in zip(list(steps)[:-1], list(steps)[1:], strict=True)]
    assert max(gaps) - min(gaps) <= 1


def test_a_training_without_a_plan_is_never_scored():
    scorer = RungScorer(None, 10, 2.0)
    assert not any(scorer.is_due(step) for step in range(11))


@pytest.mark.parametrize(("scored_at", "is_told"), [(7, True), (5, False)])
def test_a_rung_that_ray_has_not_heard_of_is_told_with_its_scores(
    tmp_path, monkeypatch, scored_at, is_told
):
    """The worker died between the checkpoint and the next poll of Ray Train."""
    config = PretrainConfig.model_validate(
        {**PRETRAIN, "name": "a", "dataset": "/clips", "output": str(tmp_path)}
    )
    folder, reported = tmp_path / "a", []
    checkpoint = folder / checkpoint_name(7)
    info = TrainingInfo(7, 60, 6.0, {}, "made24", "", "code")
    save_checkpoint(checkpoint, {"a": torch.zeros(1)}, {}, info)
    rung = Rung(2, scored_at, 1.0, {"video/knn": 0.5}, 75, ("alike",))
    add_rung(folder, rung)
    monkeypatch.setattr(train_state, "broadcast_from_rank_zero", lambda name: name)
    monkeypatch.setattr(
        train_state, "report_checkpoint", lambda *arguments: reported.append(arguments)
    )
    monkeypatch.setattr(train_state.train, "get_all_reported_checkpoints", list)
    context = SimpleNamespace(get_world_rank=lambda: 0)
    monkeypatch.setattr(train_state.train, "get_context", lambda: context)
    plan = RungPlan(4, "/clips", {}, str(folder))
    assert train_state.checkpoint_to_load(config, asdict(plan)) == checkpoint
    assert train_state.checkpoint_to_load(config) == checkpoint
    (first, scores), (second, none) = reported
    assert first.path == second.path == str(checkpoint)
    assert none == {}
    assert scores == ({**asdict(rung), "collapse": ["alike"]} if is_told else {})


def config_for(clips, **settings):
    return PretrainConfig.model_validate(
        {**PRETRAIN, "model": TINY_MODEL, "name": "a", "dataset": str(clips), "output": "/x"}
        | settings
    )


def every_fourth_is_held_out(clip):
    return "test" if clip % 4 == 0 else "train"


def test_scoring_repeats_and_leaves_the_networks_and_random_numbers_alone(tmp_path):
    clips = write_dataset(tmp_path / "clips", 12, split=every_fourth_is_held_out)
    config = config_for(clips)
    model = build_xkd(config.model)
    plan = RungPlan(2, str(clips), EvaluateSettings().model_dump(mode="json"), str(tmp_path))
    scorer = RungScorer(asdict(plan), total_steps=8, steps_per_epoch=4.0)
    assert [step for step in range(9) if scorer.is_due(step)] == [0, 4, 8]
    before = {name: tensor.clone() for name, tensor in model_tensors(model).items()}
    random_state = torch.get_rng_state()
    first = scorer.score(model, config, 4, ["video outputs are alike"])
    second = scorer.score(model, config, 8, [])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before[name], t) for name, t in model_tensors(model).items())
    assert first["scores"] == second["scores"]
    assert set(first["scores"]) == {
        f"{side}/{measure}"
        for side in ("video", "audio")
        for measure in ("knn", "linear", "retrieval")
    }
    assert (first["rung"], first["epoch"], first["num_test"]) == (1, 1.0, 3)
    assert [len(rung.collapse) for rung in read_rungs(tmp_path)] == [1, 0]


@pytest.mark.parametrize(
    ("every_epochs", "due"),
    [(1.0, [0, 3, 5, 8, 10]), (2.0, [0, 5, 10]), (0.1, list(range(11))), (50.0, [0, 10])],
)
def test_nearest_neighbors_are_asked_before_at_the_interval_and_after(tmp_path, every_epochs, due):
    config = config_for(tmp_path, health={"knn": {"every_epochs": every_epochs}})
    scorer = KnnScorer(config, total_steps=10, steps_per_epoch=2.5)
    assert [step for step in range(11) if scorer.is_due(step)] == due
    assert not any(KnnScorer(config_for(tmp_path), 10, 2.5).is_due(step) for step in range(11))


def test_nearest_neighbors_say_what_an_evaluation_says_and_touch_nothing(tmp_path):
    clips = write_dataset(tmp_path / "clips", 24, split=every_fourth_is_held_out)
    config = config_for(clips, health={"knn": {}})
    model = build_xkd(config.model)
    before = {name: tensor.clone() for name, tensor in model_tensors(model).items()}
    random_state, is_training = torch.get_rng_state(), model.training
    found = KnnScorer(config, 8, 4.0).score(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training == is_training
    assert all(torch.equal(before[name], t) for name, t in model_tensors(model).items())
    networks = {"trained": network_of(model, config.model, "teacher")}
    settings = knn_settings(config)
    features = features_of(networks, ClipDataset.open(clips), settings, lambda *_: None)
    expected = score(features, settings).modalities
    assert found == {
        f"health/{side}/knn": expected[side]["trained"].accuracy["knn"] for side in expected
    } | {f"health/{side}/retrieval": found[f"health/{side}/retrieval"] for side in expected}
    assert set(expected) == {"video", "audio"}


def test_nearest_neighbors_look_at_so_many_labelled_clips_of_each_side(tmp_path):
    clips = write_dataset(tmp_path / "clips", 24, split=every_fourth_is_held_out)
    config = config_for(clips, health={"knn": {}})
    networks = {"trained": network_of(build_xkd(config.model), config.model, "teacher")}
    settings, dataset = knn_settings(config), ClipDataset.open(clips)
    dataset.index.label[dataset.index.split == "train"][:3] = ""
    some = features_of(networks, dataset, settings, lambda *_: None, max_clips=4)
    assert (some.is_train.sum(), some.is_test.sum()) == (4, 4)
    assert (some.labels >= 0).all()
    assert some.rows[some.is_test].tolist() == [0, 4, 12, 20]  # evenly spread, both ends included
    few = features_of(networks, dataset, settings, lambda *_: None, max_clips=100)
    assert len(few.rows) == (dataset.index.label != "").sum()


def test_sound_alone_gives_a_score_of_sound(tmp_path):
    clips = write_dataset(
        tmp_path / "clips", 12, split=every_fourth_is_held_out, has_video=lambda _: False
    )
    config = config_for(tmp_path, health={"knn": {"dataset": str(clips)}})
    assert set(KnnScorer(config, 8, 4.0).score(build_xkd(config.model))) == {"health/audio/knn"}


def test_health_takes_any_cheap_measure_and_scores_students_of_frozen_teachers(tmp_path):
    clips = write_dataset(tmp_path / "clips", 24, split=every_fourth_is_held_out)
    health = {"knn": {"measures": ["linear", "svm"]}}
    config = config_for(clips, health=health, objective={"teacher": "frozen"})
    assert knn_settings(config).role == "student"
    model = build_xkd(config.model)
    found = KnnScorer(config, 8, 4.0).score(model)
    assert set(found) == {f"health/{s}/{m}" for s in ("video", "audio") for m in ("linear", "svm")}
    with torch.no_grad():
        for parameter in model.video_teacher.parameters():
            parameter.zero_()
    assert KnnScorer(config, 8, 4.0).score(model) == found
    with pytest.raises(ValueError, match="finetune"):
        config_for(clips, health={"knn": {"measures": ["finetune"]}})
