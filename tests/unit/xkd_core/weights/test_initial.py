"""Networks that begin from weights are those weights, to the bit, whatever the variant shares."""

import pytest
import torch

from tests.helpers.networks import VARIANTS, micro_config, micro_model, micro_views, train_state
from xkd_core.config import ObjectiveConfig
from xkd_core.train_step import train_step
from xkd_core.weights.initial import (
    GivenNetworks,
    begin_from,
    fitted,
    join,
    misfits,
    other_inputs,
)
from xkd_core.xkd import build_xkd

MODEL = micro_config().model
CLIPS = {"video": (2, 3, 8, 32, 32), "audio": (2, 1, 16, 64)}
SHARED = "modality_agnostic_student"
ALL_SHARED = "modality_agnostic_teacher_student"


def with_video(**changes):
    return MODEL.model_copy(update={"video": MODEL.video.model_copy(update=changes)})


def with_section(name, **changes):
    section = getattr(MODEL, name).model_copy(update=changes)
    return MODEL.model_copy(update={name: section})


def trained(variant="modality_specific", seed=3):
    """Networks whose teachers differ from their students."""
    torch.manual_seed(seed)
    model = micro_model(variant)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "_teacher" in name:
                tensor.add_(0.1 * torch.randn_like(tensor))
    return model.eval()


def networks_of(model, modality, settings=MODEL):
    prefix = f"{modality}_"
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(prefix)
    }
    return GivenNetworks(settings, {**tensors, "center": torch.full((96,), 0.5)})


def encoder_of(model, modality, role="teacher"):
    """As a registered version gives it: one encoder, for both roles, without heads."""
    weights = model.get_submodule(f"{modality}_{role}").state_dict()
    both = {f"{one}.{name}": t for one in ("student", "teacher") for name, t in weights.items()}
    return GivenNetworks(MODEL, both)


def begun(given, begins="both", model=MODEL, role=None, shared=None):
    """New networks that begin from networks by modality."""
    fits = {modality: fitted(one, model, modality, role).tensors for modality, one in given.items()}
    torch.manual_seed(8)
    new = build_xkd(model)
    begin_from(new, join(model, fits, begins, shared), begins)
    return new.eval()


def embedding(model, name):
    torch.manual_seed(1)
    with torch.no_grad():
        return model.get_submodule(name).embed(torch.randn(CLIPS[name.split("_")[0]]))


def same(model, name, other, theirs):
    return torch.equal(embedding(model, name), embedding(other, theirs))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_whole_checkpoint_gives_every_network(variant):
    settings = micro_config(variant).model
    source = trained(variant)
    given = {one: networks_of(source, one, settings) for one in CLIPS}
    new = begun(given, model=settings)
    theirs = source.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in new.state_dict().items())


@pytest.mark.parametrize("modality", CLIPS)
def test_student_and_teacher_embed_as_the_one_encoder_that_is_given(modality):
    source = trained()
    new = begun({one: encoder_of(source, one) for one in CLIPS})
    for role in ("student", "teacher"):
        assert same(new, f"{modality}_{role}", source, f"{modality}_teacher")
    heads = [new.get_submodule(f"{modality}_{role}_head") for role in ("student", "teacher")]
    pairs = zip(heads[0].parameters(), heads[1].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not torch.equal(
        heads[0].bottleneck.weight,
        source.get_submodule(f"{modality}_student_head").bottleneck.weight,
    )


def test_without_weights_of_one_modality_it_is_as_new():
    torch.manual_seed(8)
    untouched = build_xkd(MODEL)
    new = begun({"video": encoder_of(trained(), "video")})
    theirs = untouched.state_dict()
    for name, tensor in new.state_dict().items():
        is_given = name.startswith(("video_student.", "video_teacher."))
        assert is_given or torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize(
    ("begins", "student", "teacher"),
    [("students", True, False), ("teachers", False, True), ("both", True, True)],
)
def test_only_the_chosen_networks_begin_from_them(begins, student, teacher):
    source = trained()
    new = begun({"audio": networks_of(source, "audio")}, begins)
    assert same(new, "audio_student", source, "audio_student") == student
    assert same(new, "audio_teacher", source, "audio_teacher") == teacher
    assert torch.equal(new.audio_decoder.mask_token, source.audio_decoder.mask_token) == student


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_both_begin_as_the_chosen_role(role):
    source = trained()
    new = begun({"video": networks_of(source, "video")}, role=role)
    for name in ("video_student", "video_teacher"):
        assert same(new, name, source, f"video_{role}")
        own, theirs = new.get_submodule(f"{name}_head"), source.get_submodule(f"video_{role}_head")
        assert torch.equal(own.bottleneck.weight, theirs.bottleneck.weight)


@pytest.mark.parametrize("method", ["scale_factor", "exact"])
def test_longer_clips_are_embedded_as_the_encoder_itself_would_embed_them(method):
    settings = MODEL.model_copy(update={"position_interpolation": method})
    source = trained()
    source.video_teacher.position_interpolation = method
    longer = with_video(num_frames=16, frame_rate=16.0, size=40)
    given = GivenNetworks(settings, encoder_of(source, "video").tensors)
    fit = fitted(given, longer, "video")
    (remark,) = fit.remarks
    assert remark == "video positions are resized from 4 x 4 x 4 to 8 x 5 x 5 patches (trilinear)"
    new = build_xkd(longer)
    begin_from(new, join(longer, {"video": fit.tensors}, "both"), "both")
    clip = torch.randn(2, 3, 16, 40, 40)
    with torch.no_grad():
        assert torch.equal(new.video_student.embed(clip), source.video_teacher.embed(clip))


def test_shorter_sounds_are_embedded_as_the_encoder_itself_would_embed_them():
    source = trained()
    audio = MODEL.audio.model_copy(update={"num_samples": 8_000})
    shorter = MODEL.model_copy(update={"audio": audio})
    fit = fitted(encoder_of(source, "audio"), shorter, "audio")
    assert fit.remarks == ("audio positions are resized from 4 x 8 to 4 x 4 patches (bicubic)",)
    new = build_xkd(shorter)
    begin_from(new, join(shorter, {"audio": fit.tensors}, "both"), "both")
    clip = torch.randn(2, 1, 16, 32)
    with torch.no_grad():
        assert torch.equal(new.audio_student.embed(clip), source.audio_teacher.embed(clip))


def test_decoders_are_resized_too_and_keep_their_weights():
    longer = with_video(num_frames=16, frame_rate=16.0)
    fit = fitted(networks_of(trained(), "video"), longer, "video")
    assert fit.tensors["decoder.position_table"].shape == (1, 1 + 8 * 4 * 4, 32)
    assert len(fit.remarks) == 1


@pytest.mark.parametrize(
    ("section", "changes", "remark", "gone"),
    [
        (
            "head",
            {"output_width": 128},
            "the video head is new: model.head.output_width is 96 there and 128 here",
            ("student_head.", "teacher_head.", "center"),
        ),
        (
            "head",
            {"normalize_output": False},
            "the video head is new: model.head.normalize_output is True there and False here",
            ("student_head.", "teacher_head.", "center"),
        ),
        (
            "decoder",
            {"num_heads": 2},
            "the video decoder is new: model.decoder.num_heads is 4 there and 2 here",
            ("decoder.",),
        ),
    ],
)
def test_heads_and_decoders_of_other_sizes_are_new(section, changes, remark, gone):
    fit = fitted(networks_of(trained(), "video"), with_section(section, **changes), "video")
    assert fit.remarks == (remark,)
    assert not [name for name in fit.tensors if name.startswith(gone)]
    assert "student.norm.weight" in fit.tensors


@pytest.mark.parametrize(
    ("here", "modality", "text"),
    [
        (with_section("encoder", width=96), "video", "encoder.width is 48 there and 96 here"),
        (with_section("encoder", depth=4), "audio", "encoder.depth is 3 there and 4 here"),
        (with_section("encoder", num_heads=6), "audio", "encoder.num_heads is 3 there and 6 here"),
        (with_video(tubelet_size=1), "video", "video.tubelet_size is 2 there and 1 here"),
        (with_video(patch_size=16), "video", "video.patch_size is 8 there and 16 here"),
        (with_section("audio", num_mels=32), "audio", "audio.num_mels is 16 there and 32 here"),
        (with_section("audio", patch_bins=8), "audio", "audio.patch_bins is 4 there and 8 here"),
    ],
)
def test_a_misfit_names_both_values(here, modality, text):
    assert misfits(MODEL, here, modality) == [f"model.{text}"]
    assert misfits(MODEL, MODEL, modality) == []


def test_another_modality_may_differ():
    assert misfits(MODEL, with_video(patch_size=16), "audio") == []
    assert misfits(MODEL, with_section("audio", num_mels=32), "video") == []


def test_what_changes_the_input_alone_is_said():
    other = with_section("audio", hop_length=250)
    assert other_inputs(MODEL, other, "audio") == [
        "model.audio.hop_length is 252 there and 250 here"
    ]
    assert misfits(MODEL, other, "audio") == []


def test_two_encoders_for_shared_blocks_need_a_choice():
    settings = micro_config(SHARED).model
    source = trained()
    given = {one: encoder_of(source, one) for one in CLIPS}
    with pytest.raises(ValueError, match=r"modality_agnostic_student\) shares .* both students"):
        begun(given, model=settings)
    new = begun(given, model=settings, shared="audio")
    assert same(new, "audio_student", source, "audio_teacher")
    assert not same(new, "video_student", source, "video_teacher")
    # Its teachers have blocks of their own.
    assert same(new, "video_teacher", source, "video_teacher")
    assert same(new, "audio_teacher", source, "audio_teacher")
    assert new.video_student.blocks is new.audio_student.blocks


def test_two_encoders_with_the_same_blocks_need_none():
    settings = micro_config(SHARED).model
    source = trained(SHARED)
    new = begun({one: encoder_of(source, one, "student") for one in CLIPS}, model=settings)
    for modality in CLIPS:
        assert same(new, f"{modality}_student", source, f"{modality}_student")


@pytest.mark.parametrize("variant", [SHARED, ALL_SHARED])
def test_one_encoder_gives_shared_blocks_to_both(variant):
    settings = micro_config(variant).model
    source = trained()
    new = begun({"audio": encoder_of(source, "audio")}, model=settings)
    for role in ("student", "teacher"):
        assert same(new, f"audio_{role}", source, "audio_teacher")
        weights = new.get_submodule(f"video_{role}").blocks.state_dict()
        theirs = source.audio_teacher.blocks.state_dict()
        assert all(torch.equal(weights[name], theirs[name]) for name in theirs)
    assert same(new, "video_teacher", new, "video_student")


def test_shared_teachers_alone_do_not_change_students():
    settings = micro_config(ALL_SHARED).model
    torch.manual_seed(8)
    untouched = build_xkd(settings)
    new = begun({"audio": encoder_of(trained(), "audio")}, "teachers", model=settings)
    assert same(new, "video_student", untouched, "video_student")
    assert same(new, "audio_student", untouched, "audio_student")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_frozen_teacher_stays_as_it_is_to_the_bit(variant):
    objective = ObjectiveConfig(teacher="frozen")
    config, model = micro_config(variant, objective=objective), micro_model(variant)
    state = train_state(model, config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(3):
        metrics = train_step(state, micro_views(), config, total_steps=9, steps_per_epoch=3.0)
    assert metrics["schedule/video_momentum"] == metrics["schedule/audio_momentum"] == 1.0
    for name, tensor in model.state_dict().items():
        assert "_teacher" not in name or torch.equal(tensor, before[name]), name
    assert not torch.equal(model.video_student.norm.weight, before["video_student.norm.weight"])


def test_a_name_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"video_student.norm.weight \(7,\) is no tensor"):
        begin_from(micro_model(), {"video_student.norm.weight": torch.zeros(7)}, "both")
