"""Encoders enter the registry, and the alias goes to the better one on the same dataset."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.config.base import JobConfig, TrackingSettings
from pipelines.config.promote import PromoteConfig, PromoteSettings
from pipelines.errors import JobFailed, UserError
from pipelines.evaluation.outcomes import Outcomes
from pipelines.evaluation.retrieval import DIRECTIONS, retrieval_scores
from pipelines.evaluation.scores import FeatureScores
from pipelines.files import write_json
from pipelines.models.checkpoints import TRAINING_FILE, load_model
from pipelines.registry.preview import preview
from pipelines.registry.promote import checkpoint_scores, promote
from pipelines.registry.uri import resolve_model
from pipelines.tracking.runs import open_run
from tests.helpers.encoders import WIDTH, example_scores, write_checkpoint, write_media
from tests.helpers.tracking import forget_artifacts


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A run in an sqlite store; tests share it under names of their own."""
    folder = tmp_path_factory.mktemp("mlflow")
    config = JobConfig(tracking=TrackingSettings(uri=f"sqlite:///{folder / 'mlflow.db'}"))
    yield config, open_run(config, "promote", "test")
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two checkpoints of the same step with other weights."""
    folder = tmp_path_factory.mktemp("run")
    return [write_checkpoint(folder, seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def known(store, checkpoints):
    return promote(checkpoints[0], None, settings("known"), store[1])


def settings(prefix):
    return PromoteSettings(model_prefix=prefix)


def test_the_first_version_gets_the_alias(store, checkpoints):
    registered = promote(checkpoints[0], example_scores(0.5), settings("first"), store[1])
    assert [(one.name, one.version, one.alias_moved) for one in registered] == [
        ("first-video", "1", True),
        ("first-audio", "1", True),
    ]
    assert registered[0].reason == "gets the alias champion: no version had it"
    version = MlflowClient(store[1].uri).get_model_version_by_alias("first-video", "champion")
    assert version.version == 1
    assert version.status == "READY"


def test_a_version_says_what_it_is(store, checkpoints):
    promote(checkpoints[0], example_scores(0.5), settings("card"), store[1])
    client = MlflowClient(store[1].uri)
    version = client.get_model_version("card-audio", "1")
    assert "# card-audio" in version.description
    assert "| linear probe | 50.0% | [45.0, 55.0] | 20.0% |" in version.description
    assert version.tags["xkd.evaluation.dataset_id"] == "clips-1"
    assert version.tags["xkd.dataset_id"] == "training-clips"
    assert version.tags["xkd.pretrain_run_id"] == "pretrain-run"
    assert version.run_id == store[1].run_id
    logged = client.get_logged_model(version.tags["xkd.model_id"])
    scores = {metric.key: metric for metric in logged.metrics}
    assert scores["evaluation/audio/trained/linear"].value == 0.5
    assert scores["evaluation/audio/trained/linear"].dataset_digest == "clips-1"


def test_figures_of_an_incomplete_split_are_marked_on_card_and_tags(store, checkpoints):
    scores = replace(example_scores(0.5), marks=("fold 1 of 3", "27 of 30 test sources"))
    promote(checkpoints[0], scores, settings("marked"), store[1])
    client = MlflowClient(store[1].uri)
    version = client.get_model_version("marked-audio", "1")
    assert "| linear probe | 50.0% \\* | [45.0, 55.0] | 20.0% |" in version.description
    assert (
        "\\* Not the figure of the whole official split: fold 1 of 3; 27 of" in version.description
    )
    assert version.tags["xkd.evaluation.marks"] == "fold 1 of 3; 27 of 30 test sources"


def test_scores_that_were_recorded_in_part_are_recorded_by_the_same_command(
    store, checkpoints, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_batch", refuse)
        with pytest.raises(JobFailed, match="the database is locked"):
            promote(checkpoints[0], example_scores(0.5), settings("part"), store[1])
    promote(checkpoints[0], example_scores(0.5), settings("part"), store[1])
    client = MlflowClient(store[1].uri)
    for modality in ("video", "audio"):
        version = client.get_model_version(f"part-{modality}", "1")
        logged = client.get_logged_model(version.tags["xkd.model_id"])
        assert f"evaluation/{modality}/trained/linear" in {metric.key for metric in logged.metrics}
        assert version.tags["xkd.evaluation.run_id"] == example_scores(0.5).evaluate_run_id


def refuse(*_, **__):
    raise MlflowException("the database is locked")


def test_the_registered_model_embeds_as_the_checkpoint_does(store, checkpoints, tmp_path):
    film = write_media(tmp_path / "film.mkv", seconds=1.0)
    promote(checkpoints[0], None, settings("load"), store[1])
    mlflow.set_tracking_uri(store[1].uri)
    model = mlflow.pyfunc.load_model("models:/load-video@champion")
    weights = load_model(checkpoints[0])[0].video_teacher.state_dict()
    there = model.unwrap_python_model().module.encoder.state_dict()
    assert weights.keys() == there.keys()
    assert all((weights[name] == there[name]).all() for name in weights)
    embedding = model.predict({"path": [str(film)]})
    assert embedding.shape == (1, WIDTH)
    assert np.isfinite(embedding).all()


def evaluated(store, folder, share):
    """An evaluation whose first clips are right, and its results as its run has them."""
    run = open_run(store[0], "evaluate", "evaluate")
    right = (np.arange(40) < share * 40).astype(float)
    ids = np.array([f"{i:02}" for i in range(40)])
    values = {f"{side}/trained/linear": right for side in ("video", "audio")}
    outcomes = Outcomes(ids, np.arange(40), values)
    outcomes.write(folder / "outcomes.npz")
    run.client().log_artifact(run.run_id, str(folder / "outcomes.npz"))
    return replace(example_scores(share), evaluate_run_id=run.run_id), outcomes


@pytest.mark.parametrize(
    ("rule", "share", "moves"),
    [
        ("better", 0.5, False),
        ("better", 0.525, False),  # one clip of 40
        ("better", 0.8, True),
        ("not_worse", 0.5, True),
        ("not_worse", 0.475, True),
        ("not_worse", 0.2, False),
    ],
)
def test_the_alias_moves_by_the_paired_interval(store, checkpoints, tmp_path, rule, share, moves):
    names = PromoteSettings(model_prefix=f"{rule}-{share}".replace(".", "-"), rule=rule)
    scores, outcomes = evaluated(store, tmp_path, 0.5)
    promote(checkpoints[0], scores, names, store[1], outcomes)
    scores, outcomes = evaluated(store, tmp_path, share)
    second = promote(checkpoints[1], scores, names, store[1], outcomes)
    assert [(one.version, one.alias_moved) for one in second] == [("2", moves), ("2", moves)]
    start = "gets the alias champion" if moves else "registered without the alias champion"
    assert second[0].reason.startswith(
        f"{start}: its linear probe score {share:.4f} minus 0.5000 of version 1 is "
        f"{share - 0.5:+.4f} ["
    )


def without_labels(store, folder, share):
    """An evaluation of clips without labels, of which some find their own other modality."""
    run = open_run(store[0], "evaluate", "evaluate")
    ranks = np.where(np.arange(40) < share * 40, 1.0, 20.0)
    both = {f"{way}/trained": ranks for way in DIRECTIONS}
    ids = np.array([f"{i:02}" for i in range(40)])
    outcomes = Outcomes(ids[:0], np.arange(0), retrieval_ids=ids, ranks=both)
    outcomes.write(folder / "outcomes.npz")
    run.client().log_artifact(run.run_id, str(folder / "outcomes.npz"))
    found = FeatureScores((), 80, 40, "no clip has a label", {}, {}, retrieval_scores(both, ()))
    return replace(example_scores(0), evaluate_run_id=run.run_id, found=found), outcomes


def test_clips_without_labels_are_compared_by_retrieval(store, checkpoints, tmp_path):
    names = PromoteSettings(model_prefix="unlabelled", metric="retrieval")
    for checkpoint, share, version in zip(checkpoints, (0.5, 0.9), ("1", "2"), strict=True):
        scores, outcomes = without_labels(store, tmp_path, share)
        found = promote(checkpoint, scores, names, store[1], outcomes)
        assert [(one.version, one.alias_moved) for one in found] == [(version, True)] * 2
    assert found[0].reason.startswith(
        "gets the alias champion: its mean recall@5 of both directions minus that of version 1 "
        "is +0.4000 ["
    )
    card = MlflowClient(store[1].uri).get_model_version("unlabelled-audio", "2").description
    assert "how often 40 held-out clips find their own other modality" in card
    assert "| cross-modal retrieval (recall@5) | 90.0% | [" in card


def test_a_dry_run_says_what_promotion_does_and_does_nothing(checkpoints, tmp_path):
    home = JobConfig(tracking=TrackingSettings(uri=f"sqlite:///{tmp_path / 'mlflow.db'}"))
    configs = []
    for checkpoint, share in zip(checkpoints, (0.5, 0.525), strict=True):
        config = config_for(checkpoint, tmp_path / f"{share}" / "scores.json", **dict(home))
        Path(config.scores).parent.mkdir()
        configs.append(config)
    write_json(Path(configs[0].scores), example_scores(0.5).to_json())
    assert preview(configs[0]) == [
        f"would register xkd-{side} version 1: gets the alias champion: no version had it"
        for side in ("video", "audio")
    ]
    assert not (tmp_path / "mlflow.db").exists()
    store = (home, open_run(home, "promote", "test"))
    for config, share in zip(configs, (0.5, 0.525), strict=True):
        folder = Path(config.scores).parent
        scores, outcomes = evaluated(store, folder, share)
        write_json(folder / "scores.json", scores.to_json())
        foreseen = preview(config)
        found = promote(Path(config.checkpoint), scores, config, store[1], outcomes)
        assert [line.split(": ", 1)[1] for line in foreseen] == [one.reason for one in found]
    assert foreseen[0].startswith("would register xkd-video as a new version: registered without")
    assert preview(configs[0])[0] == "would find xkd-video version 1: keeps the alias champion"


def test_the_alias_stays_without_the_results_of_each_clip(store, checkpoints):
    names = settings("unpaired")
    promote(checkpoints[0], example_scores(0.5), names, store[1])
    better = promote(checkpoints[1], example_scores(0.9), names, store[1])
    assert not better[0].alias_moved
    assert better[0].reason.endswith(
        "version 1, which has it, has no results of each clip to compare with: "
        "evaluate and promote its checkpoint again"
    )


def test_the_alias_stays_where_nothing_can_be_compared(store, checkpoints):
    names = settings("compare")
    promote(checkpoints[0], example_scores(0.5), names, store[1])
    unscored = promote(checkpoints[1], None, names, store[1])
    assert unscored[0].reason.endswith("it has no linear probe score to compare with version 1, "
                                       "which has it")  # fmt: skip
    scores = example_scores(0.9, dataset_id="clips-2")
    elsewhere = promote(checkpoints[1], scores, names, store[1])
    assert elsewhere[0].reason.endswith(
        "version 1, which has it, was scored on dataset clips-1, this version on clips-2"
    )
    assert not any(one.alias_moved for one in (*unscored, *elsewhere))


def test_the_same_encoder_is_one_version(store, checkpoints):
    names = settings("same")
    first = promote(checkpoints[0], None, names, store[1])
    second = promote(checkpoints[0], example_scores(0.5), names, store[1])
    assert [one.version for one in second] == [one.version for one in first]
    assert promote(checkpoints[0], example_scores(0.5), names, store[1]) == second
    assert second[0].reason == "keeps the alias champion"
    client = MlflowClient(store[1].uri)
    version = client.get_model_version("same-video", "1")
    assert version.tags["xkd.evaluation.linear"] == "0.5"
    assert len(client.get_logged_model(version.tags["xkd.model_id"]).metrics) == 4


@pytest.mark.parametrize(
    "variant", ["modality_agnostic_student", "modality_agnostic_teacher_student"]
)
def test_encoders_that_share_blocks_are_registered_whole(store, tmp_path, variant):
    checkpoint = write_checkpoint(tmp_path, variant=variant)
    registered = promote(checkpoint, None, settings(variant), store[1])
    mlflow.set_tracking_uri(store[1].uri)
    for one in registered:
        model = mlflow.pyfunc.load_model(f"models:/{one.name}/1")
        assert model.predict(model.input_example).shape == (1, WIDTH)


def test_scores_of_another_checkpoint_are_refused(store, checkpoints):
    with pytest.raises(UserError, match="scores are of step 9, but the checkpoint is of step 7"):
        promote(checkpoints[0], example_scores(0.5, step=9), settings("other"), store[1])


def config_for(checkpoint, scores_file, **changes):
    return PromoteConfig(checkpoint=str(checkpoint), scores=str(scores_file), **changes)


def test_a_run_whose_folder_was_moved_finds_its_scores_and_its_clips(store, tmp_path):
    (tmp_path / "home" / "runs").mkdir(parents=True)
    checkpoint = write_checkpoint(tmp_path / "home" / "runs", nested=True)
    write_json(tmp_path / "home" / "runs" / "scores.json", example_scores(0.5).to_json())
    (tmp_path / "home").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / checkpoint.relative_to(tmp_path / "home")
    config = config_for(moved, tmp_path / "moved" / "runs" / "scores.json", model_prefix="moved")
    registered = promote(moved, checkpoint_scores(config), config, store[1])
    assert [one.version for one in registered] == ["1", "1"]
    shutil.rmtree(tmp_path / "moved" / "runs" / "clips")
    with pytest.raises(UserError, match=r"home/runs/clips"):
        promote(moved, None, config, store[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"scores \(.*scores\.json\) must be a scores\.json of evaluate"),
        ("[]", r"must be a scores\.json of evaluate"),
        ("3", r"must be a scores\.json of evaluate"),
        ('{"modalities": {"video": {}}}', r"must be a scores\.json of evaluate"),
        ('{"modalities": {"video": {"trained": {}}}}', r"must be a scores\.json of evaluate"),
        ('{"modalities": {"audio": [1]}}', r"must be a scores\.json of evaluate"),
        ("{}", r"must be a scores\.json of evaluate"),
        (
            '{"evaluate_run_id": "1", "modalities": {"video": {"trained": {"knn": 0.5}}}}',
            r"scores \(.*\) was written by an older release, .*: evaluate the checkpoint again",
        ),
        (
            json.dumps(example_scores(0.5).to_json() | {"pretrain_run_id": "other"}),
            r"scores are of run other, but the checkpoint is of run pretrain-run",
        ),
    ],
)
def test_a_file_of_other_content_is_no_scores(checkpoints, tmp_path, text, message):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(UserError, match=message):
        checkpoint_scores(config_for(checkpoints[0], tmp_path / "scores.json"))
    with pytest.raises(UserError, match=r"absent\.json\) does not exist; evaluate writes it"):
        checkpoint_scores(config_for(checkpoints[0], tmp_path / "absent.json"))


def test_a_version_without_a_package_of_its_own_is_refused_and_replaced(store, checkpoints):
    """As releases registered it whose models all brought a package `pipelines`."""
    names, client = settings("old"), MlflowClient(store[1].uri)
    promote(checkpoints[0], example_scores(0.5), names, store[1])
    for tag in ("xkd.code", "xkd.content"):
        client.delete_model_version_tag("old-video", "1", tag)
    with pytest.raises(UserError, match=r"version 1 was registered by an older .* again"):
        resolve_model("models:/old-video@champion", store[0].tracking)
    again = promote(checkpoints[0], example_scores(0.5), names, store[1])
    assert [(one.version, one.alias_moved) for one in again] == [("2", True), ("1", False)]
    assert again[0].reason.endswith("score 0.5000 is that of version 1, which embed refuses")
    assert resolve_model("models:/old-video@champion", store[0].tracking).version == 2


def test_a_uri_is_resolved_to_the_version_it_means_now(store, known):
    version = resolve_model("models:/known-audio@champion", store[0].tracking)
    assert version.uri == "models:/known-audio/1"
    assert (version.modality, version.sample_rate) == ("audio", 4_000)
    assert version.clips.segment_seconds == 1.5
    assert resolve_model("models:/known-audio/1", store[0].tracking) == version


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("xkd-video", r"model \(xkd-video\) must be models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/nobody@champion", r"no model nobody is registered at sqlite:.*known-audio"),
        ("models:/known-video@best", r"known-video has no alias best, its aliases are: champion"),
        ("models:/known-video/9", r"known-video has no version 9"),
    ],
)
def test_a_model_that_is_not_there_is_named(store, known, uri, message):
    with pytest.raises(UserError, match=message):
        resolve_model(uri, store[0].tracking)


def test_files_that_are_gone_are_named(store, checkpoints):
    promote(checkpoints[0], None, settings("gone"), store[1])
    version = MlflowClient(store[1].uri).get_model_version("gone-video", "1")
    shutil.rmtree(version.source)
    with pytest.raises(UserError, match=r"the files of version 1 are gone: /"):
        resolve_model("models:/gone-video/1", store[0].tracking)


def test_models_in_a_renamed_home_are_pulled_and_promoted_again(checkpoints, tmp_path):
    old, new = tmp_path / "home", tmp_path / "home-moved"
    old.mkdir()
    before = JobConfig(tracking=TrackingSettings(uri=f"sqlite:///{old}/mlflow.db"))
    promote(checkpoints[0], None, settings("moved"), open_run(before, "promote", "test"))
    old.rename(new)
    forget_artifacts()
    after = JobConfig(tracking=TrackingSettings(uri=f"sqlite:///{new}/mlflow.db"))
    version = resolve_model("models:/moved-video@champion", after.tracking)
    mlflow.set_tracking_uri(after.tracking.uri)
    try:
        encoder = mlflow.pyfunc.load_model(version.uri)
        film = write_media(tmp_path / "film.mkv")
        assert encoder.predict([{"path": str(film)}]).shape == (1, WIDTH)
    finally:
        mlflow.set_tracking_uri(None)
    again = promote(checkpoints[0], None, settings("moved"), open_run(after, "promote", "test"))
    assert [one.version for one in again] == ["1", "1"]
    other = promote(checkpoints[1], None, settings("moved"), open_run(after, "promote", "test"))
    assert [one.version for one in other] == ["2", "2"]
    assert not old.exists()


def test_a_server_that_does_not_answer_is_one_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=rf"127.0.0.1:{port}\) does not answer") as caught:
        resolve_model(
            "models:/xkd-video@champion", TrackingSettings(uri=f"http://127.0.0.1:{port}")
        )
    assert "\n" not in str(caught.value)


def test_a_version_says_what_its_training_began_from(store, tmp_path):
    checkpoint = write_checkpoint(tmp_path, seed=4)
    file = checkpoint / TRAINING_FILE
    origin = {"source": "models:/xkd-video/3", "content": "ab" * 32, "version": "3"}
    began_from = {"video": {**origin, "model_id": "m-1", "name": "xkd-video"}}
    write_json(file, {**json.loads(file.read_text()), "began_from": began_from})
    promote(checkpoint, None, settings("begun"), store[1])
    client = MlflowClient(store[1].uri)
    video, audio = (client.get_model_version(f"begun-{m}", "1") for m in ("video", "audio"))
    assert video.tags["xkd.began_from"] == "models:/xkd-video/3"
    assert video.tags["xkd.began_from_content"] == "ab" * 32
    assert video.tags["xkd.began_from_version"] == "3"
    assert "began from `models:/xkd-video/3`, content `abababababab`." in video.description
    assert (
        client.get_logged_model(video.tags["xkd.model_id"]).params["began_from_model_id"] == "m-1"
    )
    assert not [tag for tag in audio.tags if tag.startswith("xkd.began_from")]
    assert "began from" not in audio.description
