"""An alias goes back to an earlier version, and both versions say so."""

from dataclasses import replace

import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from pipelines.config.base import JobConfig, TrackingSettings
from pipelines.config.promote import DemoteConfig, PromoteConfig, PromoteSettings
from pipelines.errors import UserError
from pipelines.evaluation.outcomes import Outcomes
from pipelines.files import write_json
from pipelines.models.checkpoints import read_info
from pipelines.registry.alias import move_alias
from pipelines.registry.demote import demote, plan_demotion
from pipelines.registry.promote import promote
from pipelines.tracking.runs import open_run
from ray_jobs.demote import plan
from ray_jobs.promote import plan as plan_promotion
from tests.helpers.encoders import example_scores, write_checkpoint


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A run in an sqlite store, and two checkpoints."""
    folder = tmp_path_factory.mktemp("mlflow")
    tracking = TrackingSettings(uri=f"sqlite:///{folder / 'mlflow.db'}")
    checkpoints = [write_checkpoint(folder, seed=seed) for seed in (0, 1)]
    yield open_run(JobConfig(tracking=tracking), "promote", "test"), tracking, checkpoints
    mlflow.set_tracking_uri(None)


def two_versions(store, prefix):
    """Two versions, of which the second took the alias."""
    run, tracking, checkpoints = store
    settings = PromoteSettings(model_prefix=prefix, modalities=("video",))
    registered = [*promote(checkpoints[0], None, settings, run)]
    MlflowClient(run.uri).delete_registered_model_alias(f"{prefix}-video", "champion")
    registered += promote(checkpoints[1], None, settings, run)
    assert [one.name for one in registered] == [f"{prefix}-video"] * 2
    return lambda **values: DemoteConfig(model=f"{prefix}-video", tracking=tracking, **values)


def test_an_alias_goes_to_the_version_asked_for_and_back(store):
    config_of = two_versions(store, "there")
    client = MlflowClient(store[0].uri)
    config = config_of(to=1, reason="it mistakes rain for applause")
    text = "there-video: alias champion from version 2 to version 1"
    assert plan_demotion(config).text == text
    assert list(plan(config).notes()) == [f"would move {text}"]
    assert str(client.get_registered_model("there-video").aliases["champion"]) == "2"
    assert demote(config).new == "1"
    assert str(client.get_registered_model("there-video").aliases["champion"]) == "1"
    new, old = (client.get_model_version("there-video", number).tags for number in "12")
    assert new["xkd.alias.champion.got"].endswith("it mistakes rain for applause")
    assert old["xkd.alias.champion.lost"].endswith(
        "demoted version 2: it mistakes rain for applause"
    )
    assert demote(config_of(to=2)).new == "2"


def test_a_demotion_leads_further_back_each_time(store):
    run, tracking, checkpoints = store
    settings = PromoteSettings(model_prefix="chain", modalities=("video",))
    promote(checkpoints[0], None, settings, run)
    client = MlflowClient(run.uri)
    client.delete_registered_model_alias("chain-video", "champion")
    promote(checkpoints[1], None, settings, run)
    client.set_registered_model_alias("chain-video", "champion", "1")
    move_alias(client, "chain-video", "champion", "2", "better")
    config = DemoteConfig(model="chain-video", tracking=tracking)
    assert demote(config).new == "1"
    with pytest.raises(UserError, match="nothing is recorded of who had the alias champion before"):
        plan_demotion(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"to": 2}, r"to \(2\) must be another version"),
        ({"to": 7}, r"to \(7\) must be a version of none-video, which has 1, 2"),
        ({"alias": "best"}, r"alias \(best\) is not given to a version of none-video; .*champion"),
        ({}, "to must be given: nothing is recorded"),
    ],
)
def test_what_cannot_be_demoted_is_one_line(store, values, message):
    config_of = two_versions(store, "none")
    with pytest.raises(UserError, match=message):
        plan_demotion(config_of(**values))
    assert plan(config_of(**values)).mistakes


def test_a_model_that_is_not_registered_is_named(store, tmp_path):
    with pytest.raises(UserError, match=r"model \(lost\) is not registered"):
        plan_demotion(DemoteConfig(model="lost", tracking=store[1]))
    elsewhere = TrackingSettings(uri=f"sqlite:///{tmp_path / 'no.db'}")
    with pytest.raises(UserError, match=r"model \(lost\) is not registered: there is no"):
        plan_demotion(DemoteConfig(model="lost", tracking=elsewhere))
    assert not (tmp_path / "no.db").exists()


@pytest.mark.parametrize(("share", "moves"), [(0.5, False), (0.9, True)])
def test_an_alias_may_depend_on_both_encoders_together(store, tmp_path, share, moves):
    run, tracking, checkpoints = store
    settings = PromoteSettings(
        model_prefix=f"joined{moves}", modalities=("video",), compared_on="late"
    )

    def evaluated(of):
        right = (np.arange(40) < of * 40).astype(float)
        ids = np.array([f"{i:02}" for i in range(40)])
        outcomes = Outcomes(ids, np.arange(40), {"late/trained/linear": right})
        evaluation = open_run(JobConfig(tracking=tracking), "evaluate", "evaluate")
        outcomes.write(tmp_path / "outcomes.npz")
        evaluation.client().log_artifact(evaluation.run_id, str(tmp_path / "outcomes.npz"))
        scores = example_scores(0.5)
        return type(scores)(**vars(scores) | {"evaluate_run_id": evaluation.run_id}), outcomes

    for checkpoint, of in zip(checkpoints, (0.5, share), strict=True):
        scores, outcomes = evaluated(of)
        (registered,) = promote(checkpoint, scores, settings, run, outcomes)
    assert registered.alias_moved == moves
    assert "linear probe score of video and audio, mean of scores" in registered.reason


def test_a_metric_that_was_not_measured_is_named(store, tmp_path):
    _, tracking, checkpoints = store
    info = read_info(checkpoints[0])
    known = {"pretrain_run_id": info.run_id, "step": info.next_step}
    write_json(tmp_path / "scores.json", replace(example_scores(0.5), **known).to_json())
    values = {"checkpoint": str(checkpoints[0]), "scores": str(tmp_path / "scores.json")}
    config = PromoteConfig.model_validate(values | {"tracking": tracking, "metric": "svm"})
    (mistake,) = plan_promotion(config).mistakes
    assert mistake.startswith("metric (svm) must be one that scores (")
    assert mistake.endswith("have: knn, linear; or evaluate with it among measures")
    assert not plan_promotion(config.model_copy(update={"metric": "knn"})).mistakes
