"""What is found wrong with a training before it starts."""

import json
import re

import pytest

from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.dataset.clip_ids import clip_ids_sha256
from pipelines.errors import UserError
from pipelines.models.checkpoints import TRAINING_FILE
from pipelines.tracking.run_folder import RUN_FILE, RunFolder
from pipelines.training.checks import EARLIER_SETTINGS, check_pretrain, training_length
from pipelines.training.pretrain import _open_run, pretrain
from pipelines.training.resources import worker_resources
from tests.helpers.clip_datasets import source_of, write_dataset, write_segments
from tests.helpers.training import folder_of, leave_checkpoint, tiny_config, tiny_dataset


@pytest.mark.parametrize(
    ("workers", "nodes", "cpus"),
    [
        (1, [16], 16),
        (3, [16], 5),
        (1, [8, 8], 8),  # not 16, which no node has
        (3, [8, 8], 4),
        (2, [2, 0, 12], 6),
        (4, [2], 1),  # an elastic group takes what there is
    ],
)
def test_cpus_are_shared_out_node_by_node(tmp_path, workers, nodes, cpus):
    config = tiny_config(tmp_path, tmp_path, num_workers=[1, workers], batch_size=24)
    config = config.model_copy(update={"cpus_per_worker": None})
    assert worker_resources(config, [{"CPU": have} for have in nodes]) == {"CPU": cpus}


@pytest.mark.parametrize(
    ("settings", "nodes", "message"),
    [
        ({"cpus_per_worker": 9}, [{"CPU": 8}] * 2, r"cpus_per_worker \(9\) .* the 8 CPUs of the"),
        (
            {"num_workers": 2, "cpus_per_worker": 3},
            [{"CPU": 5}, {"CPU": 2}],
            r"num_workers \(2\) needs 2 x 3 CPUs, but .* have 5 CPUs; 2 CPUs: room for 1",
        ),
        (
            {"use_gpu": True},
            [{"CPU": 8}],
            r"num_workers \(1\) needs 1 x 1 CPU and 1 x 1 GPU, .* 8 CPUs, 0 GPUs: room for 0",
        ),
    ],
)
def test_workers_that_fit_on_no_node_are_refused(tmp_path, settings, nodes, message):
    with pytest.raises(UserError, match=message):
        worker_resources(tiny_config(tmp_path, tmp_path, **settings), nodes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"cuda_graphs \(true\) must be false with use_gpu \(false\)"),
        (
            {"use_gpu": True, "num_workers": [1, 2]},
            r"cuda_graphs \(true\) must be false with num_workers \(2\): only the steps of",
        ),
    ],
)
def test_steps_are_recorded_on_a_single_gpu_alone(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(tmp_path, tmp_path, cuda_graphs=True, **settings)


@pytest.mark.parametrize(
    ("silent", "unseen", "counts"),
    [
        (lambda _: True, lambda _: False, "6 have a picture alone and 0 have sound alone"),
        (lambda clip: clip < 2, lambda clip: clip >= 2, "2 have a picture alone and 4 have sound"),
    ],
)
def test_clips_that_lack_picture_or_sound_are_counted(tmp_path, silent, unseen, counts):
    folder = write_dataset(
        tmp_path / "clips",
        6,
        num_frames=10,
        has_audio=lambda clip: not silent(clip),
        has_video=lambda clip: not unseen(clip),
    )
    config = tiny_config(tmp_path, folder)
    message = rf"has no clip with picture and sound in split train: of its 6 clips, {counts}"
    (mistake,) = check_pretrain(config)
    assert re.search(message, mistake)
    with pytest.raises(UserError, match=message):
        pretrain(config, on_progress=lambda *_: None)


def test_a_frozen_teacher_needs_weights(tmp_path):
    dataset = tiny_dataset(tmp_path / "clips")
    (mistake,) = check_pretrain(tiny_config(tmp_path, dataset, objective={"teacher": "frozen"}))
    assert mistake.startswith("objective.teacher (frozen) needs init")


def test_a_list_of_excluded_clips_that_changed_is_refused(tmp_path):
    dataset = tiny_dataset(tmp_path / "clips")
    ids = ClipDataset.open(dataset).index.clip_id.tolist()
    exclude = tmp_path / "leaks.txt"
    exclude.write_text("\n".join(ids[:3]))
    config = tiny_config(tmp_path, dataset, exclude=str(exclude))
    folder_of(config).mkdir(parents=True)
    _open_run(config, RunFolder(folder_of(config)), None)
    exclude.write_text("# in another order\n" + "\n".join(reversed(ids[:3])))
    assert check_pretrain(config) == []
    exclude.write_text("\n".join(ids[:4]))
    (mistake,) = check_pretrain(config)
    assert f"exclude ({exclude}) names other clips than when the run tiny began" in mistake
    exclude.unlink()
    (mistake,) = check_pretrain(config)
    assert "cannot be read" in mistake


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 8}, "another batch_size: it is 4 there and 8 here, and .* order of clips"),
        ({"seed": 3}, "another seed: it is 0 there and 3 here"),
        ({"splits": ["train", "val"]}, "another splits: "),
        ({"shuffle_window": 3}, "another shuffle_window: it is 16 there and 3 here"),
        (
            {"optimizer": {"warmup_epochs": 1.0, "decay_tokens_and_positions": False}},
            "another optimizer.decay_tokens_and_positions: it is True there and False here",
        ),
        (
            {"epochs": 1.0},
            r"has done 7 steps, but epochs \(1\) are 6 steps of 4 of 24 clips \(one of",
        ),
        ({"epoch_unit": "segment"}, "another epoch_unit: it is source there and segment here"),
    ],
)
def test_a_checkpoint_of_another_training_that_does_not_fit_is_refused(tmp_path, settings, message):
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "clips"))
    checkpoint = leave_checkpoint(config)
    (mistake,) = check_pretrain(
        tiny_config(tmp_path, tmp_path / "clips", name="second", resume=str(checkpoint), **settings)
    )
    assert re.match(rf"resume \({checkpoint}\) has ", mistake)
    assert re.search(message, mistake)


def test_the_same_clips_in_other_shards_are_refused(tmp_path):
    """Row groups end elsewhere, so the feed would repeat clips and leave out others."""
    dataset = tiny_dataset(tmp_path / "clips")
    config = tiny_config(tmp_path, dataset)
    order = ClipDataset.open(dataset).index.order_sha256
    own = leave_checkpoint(config, order_sha256=order)
    assert check_pretrain(config) == []

    leave_checkpoint(config, order_sha256="0" * 64)
    (mistake,) = check_pretrain(config)
    assert re.match(
        rf"checkpoint \({own}\) was trained on the clips of dataset .* in other", mistake
    )
    other = tiny_config(tmp_path, dataset, name="second", resume=str(own))
    assert check_pretrain(other) == [mistake]


def forget_order(checkpoint):
    """Makes a file one of a version that did not know how to order clips in another way."""
    values = json.loads(checkpoint.read_text())
    del values["config"]["epoch_unit"], values["config"]["num_lanes"]
    checkpoint.write_text(json.dumps(values))


def test_a_training_from_before_sources_and_lanes_goes_on_in_its_own_order(tmp_path):
    dataset = tiny_dataset(tmp_path / "clips")
    config = tiny_config(tmp_path, dataset)
    segments = config.model_copy(update=EARLIER_SETTINGS)
    folder_of(config).mkdir(parents=True)
    _open_run(config, RunFolder(folder_of(config)), None)
    forget_order(folder_of(config) / RUN_FILE)
    (mistake,) = check_pretrain(config)
    assert "epoch_unit is segment there and source here" in mistake
    assert check_pretrain(segments) == []

    (folder_of(config) / RUN_FILE).unlink()
    own = leave_checkpoint(config)
    forget_order(own / TRAINING_FILE)
    mistakes = check_pretrain(config)
    assert f"epoch_unit (source) must be segment, as in checkpoint {own}" in mistakes[0]
    assert "Take num_lanes=1 or another name" in mistakes[1]
    assert check_pretrain(segments) == []

    other = tiny_config(tmp_path, dataset, name="second", resume=str(own))
    mistakes = check_pretrain(other)
    assert "another epoch_unit: it is segment there and source here" in mistakes[0]
    assert "another num_lanes: it is 1 there and None here" in mistakes[1]
    assert check_pretrain(other.model_copy(update=EARLIER_SETTINGS)) == []


def test_a_dry_run_says_how_long_a_training_is(tmp_path):
    dataset = write_segments(tmp_path / "clips", [*source_of(0, 40), *source_of(1, 60)])
    config = tiny_config(tmp_path, dataset)
    assert training_length(config) == [
        "would train  5 steps, 0.5 an epoch: one clip of each of 2 sources"
    ]
    assert training_length(config.model_copy(update={"epoch_unit": "segment"})) == [
        "would train  13 steps, 1.25 an epoch: one clip of each of 5 segments"
    ]
    assert training_length(tiny_config(tmp_path, tmp_path / "none")) == []


def test_a_checkpoint_of_another_training_may_be_gone_on_with_in_another_way(tmp_path):
    """Other workers, another schedule, other weights of the losses."""
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "clips"))
    checkpoint = leave_checkpoint(config, exclude_sha256=clip_ids_sha256(None))
    other = tiny_config(
        tmp_path,
        tmp_path / "clips",
        name="second",
        resume=str(checkpoint),
        num_workers=2,
        epochs=20.0,
        optimizer={"warmup_epochs": 0.0, "weight_decay": 0.3},
        objective={"alignment_weight": 0.1},
    )
    assert check_pretrain(other) == []
    ids = tmp_path / "leaks.txt"
    ids.write_text(ClipDataset.open(tmp_path / "clips").index.clip_id[0])
    (mistake,) = check_pretrain(other.model_copy(update={"exclude": str(ids)}))
    assert f"left out other clips than exclude ({ids})" in mistake


def test_a_checkpoint_that_would_not_be_begun_from_is_refused(tmp_path):
    """The newest of the run itself always counts."""
    config = tiny_config(tmp_path, tiny_dataset(tmp_path / "clips"))
    older, newest = leave_checkpoint(config), leave_checkpoint(config, next_step=9)
    other = leave_checkpoint(tiny_config(tmp_path, tmp_path / "clips", name="other"))
    for checkpoint in (older, other):
        (mistake,) = check_pretrain(config.model_copy(update={"resume": str(checkpoint)}))
        assert f"resume ({checkpoint}) would do nothing" in mistake
        assert f"{newest}. Take another name" in mistake
    assert check_pretrain(config.model_copy(update={"resume": str(newest)})) == []
    # The command that the run began with goes on.
    again = config.model_copy(update={"resume": str(other)})
    (folder_of(config) / RUN_FILE).write_text(
        json.dumps({"run_id": "a", "config": again.model_dump(mode="json")})
    )
    assert check_pretrain(again) == []


def test_clips_that_give_no_score_on_the_way_are_refused(tmp_path):
    dataset = tiny_dataset(tmp_path / "clips")

    def mistakes(**knn):
        return check_pretrain(tiny_config(tmp_path, dataset, health={"knn": knn}))

    (mistake,) = mistakes()
    assert (
        mistake == f"health.knn: dataset ({dataset}) gives no score: there is no split val or test"
    )
    (mistake,) = mistakes(dataset=str(tmp_path / "nowhere"))
    assert mistake.startswith("health.knn: ")
    labelled = write_dataset(
        tmp_path / "labelled",
        9,
        has_video=lambda _: False,
        split=lambda clip: "val" if clip < 3 else "train",
    )
    assert mistakes(dataset=str(labelled)) == []
    with pytest.raises(ValueError, match=r"parallelism \(fsdp\) must be ddp with health.knn"):
        tiny_config(
            tmp_path, dataset, health={"knn": {}}, num_workers=2, parallelism="fsdp", batch_size=4
        )
