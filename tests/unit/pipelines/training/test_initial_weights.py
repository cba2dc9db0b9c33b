"""A training begins as the weights that `init` names, and no later event changes which they are."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pipelines.config.pretrain import PretrainConfig
from pipelines.errors import UserError
from pipelines.files import write_json
from pipelines.models.checkpoints import MODEL_FILE, TRAINING_FILE
from pipelines.tracking.run_folder import RUN_FILE
from pipelines.training.checks import check_pretrain, run_mistakes
from pipelines.training.initial_weights import (
    TENSORS_FILE,
    discard_weights,
    init_mistakes,
    init_notes,
    prepare_weights,
)
from ray_jobs.cli.settings import load_settings
from tests.helpers.networks import VARIANTS, micro_config
from tests.helpers.training import MODEL, folder_of, leave_checkpoint, tiny_config, tiny_dataset
from tests.helpers.weights import earlier_training, register, some_networks
from xkd_core.losses import initial_centers
from xkd_core.published.files import save_published_encoder, save_published_model
from xkd_core.published.names import load_published
from xkd_core.weights.initial import begin_from
from xkd_core.xkd import build_xkd

CLIPS = {"video": (2, 3, 8, 16, 16), "audio": (2, 1, 16, 48)}
PUBLISHED = {**MODEL, "encoder": {"width": 64, "depth": 2, "num_heads": 1}}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Weights of every kind, which tests do not change."""
    home = tmp_path_factory.mktemp("weights")
    model = tiny_config(home, home).model
    networks = some_networks(model)
    earlier_training(home, networks)
    for modality in CLIPS:
        register(home, networks, modality, model, alias="champion")
    return home


@pytest.fixture(scope="module")
def networks(home):
    return some_networks(tiny_config(home, home).model)


def config_at(home, tmp_path, init, **settings):
    """A training elsewhere that knows the registry at `home`."""
    tracking = {"uri": f"sqlite:///{home}/mlflow.db"}
    return tiny_config(tmp_path, tmp_path / "clips", init=init, tracking=tracking, **settings)


def checkpoint_in(home):
    return next((home / "runs/earlier").glob("step_*"))


def begun(config):
    """The networks before the first step."""
    folder_of(config).mkdir(parents=True, exist_ok=True)
    weights = prepare_weights(config, config.tracking)
    torch.manual_seed(config.seed)
    model = build_xkd(config.model)
    begin_from(model, load_file(weights.file), config.init.networks)
    return model.eval(), weights


def same(model, name, other, theirs):
    torch.manual_seed(1)
    clip = torch.randn(CLIPS[name.split("_")[0]])
    with torch.no_grad():
        return torch.equal(
            model.get_submodule(name).embed(clip), other.get_submodule(theirs).embed(clip)
        )


def begin(config):
    """Writes what a run leaves that has begun."""
    write_json(folder_of(config) / RUN_FILE, {"run_id": "a", "config": config.model_dump()})


@pytest.mark.parametrize("modality", CLIPS)
def test_students_and_teachers_begin_as_a_registered_version(home, networks, tmp_path, modality):
    config = config_at(home, tmp_path, f"models:/xkd-{modality}@champion")
    model, weights = begun(config)
    for role in ("student", "teacher"):
        assert same(model, f"{modality}_{role}", networks, f"{modality}_teacher")
    (origin,) = weights.origins.values()
    assert origin["source"] == f"models:/xkd-{modality}/1"
    assert (origin["name"], origin["version"]) == (f"xkd-{modality}", "1")
    assert re.fullmatch("[0-9a-f]{64}", origin["content"])
    assert origin["model_id"].startswith("m-")


@pytest.mark.parametrize("kind", ["checkpoint", "run"])
def test_a_checkpoint_gives_each_network_its_own(home, networks, tmp_path, kind):
    checkpoint = checkpoint_in(home)
    config = config_at(
        home, tmp_path, str(checkpoint if kind == "checkpoint" else checkpoint.parent)
    )
    model, weights = begun(config)
    theirs = networks.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())
    tensors = load_file(weights.file)
    assert torch.equal(tensors["centers.video"], torch.full((64,), 0.25))
    assert weights.origins["audio"]["source"] == str(checkpoint)
    assert weights.origins["audio"]["step"] == "7"


def test_the_folder_of_the_main_job_gives_its_training(home, tmp_path):
    main = tmp_path / "made"
    shutil.copytree(home / "runs/earlier", main / "pretrain/made")
    _, weights = begun(config_at(home, tmp_path, str(main)))
    assert weights.origins["video"]["source"].startswith(str(main / "pretrain/made/step_"))


def test_each_modality_may_have_a_source_of_its_own(home, networks, tmp_path):
    init = {"source": "models:/xkd-audio/1", "video": str(checkpoint_in(home)), "role": "student"}
    model, weights = begun(config_at(home, tmp_path, init))
    assert same(model, "video_teacher", networks, "video_student")
    assert same(model, "audio_student", networks, "audio_teacher")
    assert weights.origins["video"]["role"] == "student"
    assert weights.origins["audio"]["source"] == "models:/xkd-audio/1"


@pytest.mark.parametrize("naming", ["training", "evaluation"])
def test_a_published_file_of_one_encoder(tmp_path, naming):
    config = tiny_config(tmp_path, tmp_path / "clips", model=PUBLISHED, init="file")
    networks = some_networks(config.model)
    file = tmp_path / "XKD_vid_teacher.pth.tar"
    save_published_encoder(networks.video_teacher, file, naming=naming)
    # Names of evaluation do not tell the modality of patches of other sizes.
    init = {"video": str(file)}
    model, weights = begun(config.model_copy(update={"init": config.init.model_validate(init)}))
    for role in ("student", "teacher"):
        assert same(model, f"video_{role}", networks, "video_teacher")
    assert weights.origins["video"]["role"] == "teacher"


def test_a_whole_published_checkpoint_gives_every_network(tmp_path):
    config = tiny_config(tmp_path, tmp_path / "clips", model=PUBLISHED, init="checkpoint.pth.tar")
    networks = some_networks(config.model)
    file = tmp_path / "checkpoint.pth.tar"
    save_published_model(networks, initial_centers(64), file, epoch=3)
    init = config.init.model_validate(str(file))
    model, _ = begun(config.model_copy(update={"init": init}))
    theirs = networks.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_of_the_published_program_give_every_network(golden_dir, tmp_path, variant):
    weights = load_file(golden_dir / variant / "weights.safetensors")
    file = tmp_path / "checkpoint.pth.tar"
    named = {f"module.{name}": tensor for name, tensor in weights.items()}
    torch.save({"model": named, "epoch": 800, "optimizer": None, "amp": None}, file)
    settings = micro_config(variant).model.model_dump(mode="json")
    config = tiny_config(tmp_path, tmp_path / "clips", model=settings, init=str(file))
    model, _ = begun(config)
    published = build_xkd(config.model)
    load_published(published, weights)
    theirs = published.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_a_published_file_has_one_head_for_each_64_numbers(tmp_path):
    model = {**PUBLISHED, "encoder": {"width": 64, "depth": 2, "num_heads": 2}}
    file = tmp_path / "XKD_vid_teacher.pth.tar"
    config = tiny_config(tmp_path, tmp_path / "clips", model=model, init={"video": str(file)})
    save_published_encoder(some_networks(config.model).video_teacher, file)
    (mistake,) = init_mistakes(config)
    assert "model.encoder.num_heads is 1 there and 2 here" in mistake


def test_patches_of_a_published_file_are_compared(tmp_path):
    file = tmp_path / "XKD_vid_teacher.pth.tar"
    config = tiny_config(tmp_path, tmp_path / "clips", init={"video": str(file)})
    save_published_encoder(some_networks(config.model).video_teacher, file)
    other = {**MODEL, "video": {**MODEL["video"], "patch_size": 4}}
    (mistake,) = init_mistakes(tiny_config(tmp_path, tmp_path, model=other, init=config.init))
    assert (
        "patches of video hold 384 numbers there and 96 here (model.video.tubelet_size 2" in mistake
    )


def test_an_alias_that_moves_and_a_version_that_goes_change_nothing_for_a_run(tmp_path):
    home = tmp_path / "registry"
    home.mkdir()
    model = tiny_config(home, home).model
    first, second = some_networks(model, 5), some_networks(model, 6)
    register(home, first, "video", model, alias="champion")
    config = config_at(home, tmp_path, "models:/xkd-video@champion")
    _, weights = begun(config)
    begin(config)
    register(home, second, "video", model, alias="champion")
    assert (
        begun(config_at(home, tmp_path, config.init, name="new"))[1]
        .origins["video"]["source"]
        .endswith("/2")
    )
    fresh = weights.file
    shutil.move(fresh, tmp_path / "kept")
    _, again = begun(config)  # its copy is lost: from the recorded version again
    assert again.origins == weights.origins
    shutil.rmtree(home)
    assert init_mistakes(config) == []
    model, again = begun(config)
    assert (again.file, again.origins) == (fresh, weights.origins)
    assert same(model, "video_student", first, "video_teacher")


def test_a_run_with_a_checkpoint_of_its_own_needs_no_weights(home, tmp_path):
    tiny_dataset(tmp_path / "clips")
    config = config_at(home, tmp_path, str(checkpoint_in(home)))
    _, weights = begun(config)
    begin(config)
    leave_checkpoint(config)
    discard_weights(folder_of(config))
    assert not (folder_of(config) / TENSORS_FILE).exists()
    again = prepare_weights(config, config.tracking)
    assert (again.file, again.origins) == (None, weights.origins)
    assert check_pretrain(config) == []


def test_other_weights_are_another_run(home, tmp_path):
    config = config_at(home, tmp_path, "models:/xkd-video@champion")
    begun(config)
    begin(config)
    other = config_at(home, tmp_path, "models:/xkd-audio@champion")
    (mistake,) = run_mistakes(other)
    assert "init.source is models:/xkd-video@champion there and models:/xkd-audio@champi" in mistake
    (mistake,) = run_mistakes(config_at(home, tmp_path, None))
    assert "init.source is models:/xkd-video@champion there and None here" in mistake


def test_a_run_from_before_these_settings_goes_on(tmp_path):
    config = tiny_config(tmp_path, tmp_path / "clips")
    values = config.model_dump(mode="json")
    del values["init"], values["optimizer"]["layer_decay"], values["objective"]["teacher"]
    folder_of(config).mkdir(parents=True)
    write_json(folder_of(config) / RUN_FILE, {"run_id": "a", "config": values})
    assert run_mistakes(config) == []


@pytest.mark.parametrize(
    ("init", "settings", "message"),
    [
        ("/no/such/folder", {}, r"init: checkpoint \(/no/such/folder\) does not exist"),
        ("{tmp}", {}, r"init: checkpoint \({tmp}\) holds no complete checkpoint"),
        ("{tmp}/text.pth", {}, r"init: {tmp}/text.pth is truncated, damaged, or not written by"),
        ("models:/none@champion", {}, r"init: .*no model none is registered .* has xkd-audio, xkd"),
        ("models:/xkd-video@best", {}, r"init: .*has no alias best, its aliases are: champion"),
        ("models:/xkd-video/9", {}, r"init: .*xkd-video has no version 9"),
        (
            {"video": "models:/xkd-audio/1"},
            {},
            r"init.video \(models:/xkd-audio/1\) must be an encoder of video, but is one of audio",
        ),
        (
            "models:/xkd-video/1",
            {"model": {**MODEL, "encoder": {"width": 64, "depth": 2, "num_heads": 2}}},
            r"init \(models:/xkd-video/1\) does not fit: model.encoder.width is 32 there and 64 h",
        ),
        (
            {"audio": "models:/xkd-audio/1"},
            {"model": {**MODEL, "audio": {**MODEL["audio"], "patch_bins": 8}}},
            r"init.audio \(.*\) does not fit: model.audio.patch_bins is 4 there and 8 here",
        ),
        (
            "{checkpoint}",
            {"model": {**MODEL, "video": {**MODEL["video"], "patch_size": 4}}},
            r"does not fit: model.video.patch_size is 8 there and 4 here",
        ),
        ("{checkpoint}/model.safetensors", {}, r"init: .* lies in a folder .*: give {checkpoint}"),
        (
            {"source": "models:/xkd-video/1", "shared_blocks": "video"},
            {},
            r"init.shared_blocks \(video\) would do nothing: model.variant \(modality_specific\)",
        ),
        (
            {"source": "models:/xkd-video/1", "shared_blocks": "audio"},
            {"model": {**MODEL, "variant": "modality_agnostic_student"}},
            r"init.shared_blocks \(audio\) must be an encoder that init gives: video",
        ),
        (
            {"video": "models:/xkd-video/1", "audio": "models:/xkd-audio/1"},
            {"model": {**MODEL, "variant": "modality_agnostic_student"}},
            r"model.variant \(.*student\) shares the blocks .* set init.shared_blocks to video or",
        ),
        (
            "models:/xkd-video/1",
            {"optimizer": {"warmup_epochs": 1, "frozen_audio_blocks": 1}},
            r"optimizer.frozen_audio_blocks \(1\) must be 0 for a audio student with new weights",
        ),
        (
            None,
            {"optimizer": {"warmup_epochs": 1, "frozen_video_blocks": 1}},
            r"optimizer.frozen_video_blocks \(1\) must be 0 for a video student with new weights",
        ),
    ],
)
def test_what_cannot_be_begun_from_is_one_line(home, tmp_path, init, settings, message):
    (tmp_path / "text.pth").write_text("no weights")
    names = {"tmp": str(tmp_path), "checkpoint": str(checkpoint_in(home))}
    if isinstance(init, str):
        init = init.format(**names)
    config = config_at(home, tmp_path, init, **settings)
    (mistake,) = init_mistakes(config)
    assert re.search(message.format(**names), mistake), mistake
    assert "\n" not in mistake
    if init is not None:
        assert init_notes(config) == [] or "frozen" in mistake or "shares" in mistake


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("models:/xkd-video", r"init.source \('models:/xkd-video'\)|must be models:/NAME@ALIAS or"),
        ("models:/xkd-video/latest", "must be models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("https://host/one", r"\(https://host/one\) must be .* on a disk or in a bucket"),
        ("runs:/abc/model", r"\(runs:/abc/model\) must be models:/NAME@ALIAS"),
        ({"networks": "both"}, "source, video or audio must name weights"),
        ({"source": "a", "video": "b", "audio": "c"}, r"init.source \(.*/a\) must not be set with"),
        ({"vidoe": "a"}, "vidoe"),
    ],
)
def test_a_setting_that_names_no_weights_is_refused(tmp_path, init, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(tmp_path, tmp_path, init=init)


def test_init_and_resume_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match=r"resume \(/a\) must not be set with init \(/b\): resume"):
        tiny_config(tmp_path, tmp_path, init="/b", resume="/a")


@pytest.mark.parametrize("what", ["checkpoint", "model", "weights"])
def test_weights_of_another_release_or_damaged_ones_are_one_line(home, tmp_path, what):
    checkpoint = shutil.copytree(checkpoint_in(home), tmp_path / "old" / "step_1")
    values = json.loads((checkpoint / TRAINING_FILE).read_text())
    message = "was written by another release"
    if what == "checkpoint":
        values["mood"] = "good"
    elif what == "model":
        values["config"]["model"]["rotary"] = True
    else:
        size = (checkpoint / MODEL_FILE).stat().st_size
        (checkpoint / MODEL_FILE).write_bytes(b"\xff" * size)
        message = "cannot be loaded"
    (checkpoint / TRAINING_FILE).write_text(json.dumps(values))
    config = config_at(home, tmp_path, str(checkpoint))
    folder_of(config).mkdir(parents=True)
    with pytest.raises(UserError, match=message) as raised:
        prepare_weights(config, config.tracking)
    assert "\n" not in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_infinite_weights_are_named(home, tmp_path):
    networks = some_networks(tiny_config(home, home).model)
    with torch.no_grad():
        networks.audio_student.norm.bias[0] = torch.inf
    config = config_at(home, tmp_path, str(earlier_training(tmp_path, networks)))
    folder_of(config).mkdir(parents=True)
    with pytest.raises(UserError, match=r"audio_student.norm.bias has numbers that are not finite"):
        prepare_weights(config, config.tracking)


def test_a_dry_run_says_what_would_begin_from_what(home, tmp_path):
    longer = {**MODEL, "video": {**MODEL["video"], "num_frames": 4, "local_num_frames": 4}}
    longer["audio"] = {**MODEL["audio"], "num_samples": 800}
    config = config_at(
        home,
        tmp_path,
        "models:/xkd-video@champion",
        model=longer,
        objective={"teacher": "frozen"},
    )
    assert init_notes(config) == [
        "would begin  video student and teacher from models:/xkd-video/1",
        "would begin  audio student and teacher with new weights",
        "note: video positions are resized from 4 x 2 x 2 to 2 x 2 x 2 patches (trilinear)",
        "note: the head of the frozen video teacher is new, and stays as it is",
        "note: init gives no weights to the frozen audio teacher",
    ]


def test_one_encoder_for_shared_blocks_says_so(home, tmp_path):
    model = {**MODEL, "variant": "modality_agnostic_teacher_student"}
    config = config_at(home, tmp_path, "models:/xkd-audio@champion", model=model)
    assert init_notes(config)[-1] == (
        "note: students and teachers of both modalities share the blocks of the audio encoder; "
        "patches, positions and norm of video are new"
    )
    assert init_mistakes(config) == []


def test_the_command_line_takes_the_short_form_and_more():
    given = ["name=a", "dataset=/d", "output=/o", "epochs=40", "batch_size=4", "init=/weights"]
    config = load_settings(PretrainConfig, None, given)
    assert (config.init.source, config.init.networks) == ("/weights", "both")
    config = load_settings(PretrainConfig, None, [*given, "init.networks=students"])
    assert (config.init.source, config.init.networks) == ("/weights", "students")
    config = load_settings(PretrainConfig, None, [*given, "init=null"])
    assert config.init is None
