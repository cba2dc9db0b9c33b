"""Facts about the networks."""

import pytest
import torch

from tests.helpers.networks import VARIANTS, micro_config, micro_model, micro_views
from xkd_core.config import ModelConfig, TransformerConfig
from xkd_core.losses import initial_centers, losses, teacher_temperatures
from xkd_core.refinement import agreement, refine_and_pool
from xkd_core.xkd import build_xkd, load_model_tensors, model_tensors

# Published totals count the fixed lengths of the heads' last layers, which are not stored here.
FIXED_LENGTHS = 4 * 8192
TEACHERS = ("video_teacher", "audio_teacher", "video_teacher_head", "audio_teacher_head")


@pytest.mark.parametrize(
    ("variant", "total_millions", "trainable_millions"),
    [
        ("modality_specific", 396.37, 206.35),
        ("modality_agnostic_student", 311.35, 121.32),
        ("modality_agnostic_teacher_student", 226.32, 121.32),
    ],
)
def test_a_vit_b_has_the_published_number_of_parameters(
    variant, total_millions, trainable_millions
):
    with torch.device("meta"):
        model = build_xkd(ModelConfig(variant=variant))
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round((total + FIXED_LENGTHS) / 1e6, 2) == total_millions
    assert round(trainable / 1e6, 2) == trainable_millions


@pytest.mark.parametrize(
    ("size", "video_millions", "audio_millions", "head_millions"),
    [
        ((192, 12, 3), 6.00, 5.45, 7.23),
        ((384, 12, 6), 22.61, 21.52, 7.62),
        ((768, 12, 12), 87.691, 85.510, 8.405),
        ((1024, 24, 16), 305.79, 302.88, 8.93),
    ],
)
def test_networks_of_every_width_have_the_published_number_of_parameters(
    size, video_millions, audio_millions, head_millions
):
    width, depth, num_heads = size
    encoder = TransformerConfig(width=width, depth=depth, num_heads=num_heads)
    with torch.device("meta"):
        model = build_xkd(ModelConfig(encoder=encoder))

    def millions(module, fixed=0):
        digits = 3 if width == 768 else 2
        return round((sum(p.numel() for p in module.parameters()) + fixed) / 1e6, digits)

    assert millions(model.video_student) == video_millions
    assert millions(model.audio_student) == audio_millions
    assert millions(model.video_student_head, fixed=8192) == head_millions


def test_the_parts_of_the_papers_decoders_have_the_published_number_of_parameters():
    with torch.device("meta"):
        model = build_xkd(ModelConfig())

    def millions(*parameters):
        return round(sum(p.numel() for p in parameters) / 1e6, 3)

    for decoder, output, positions in (
        (model.video_decoder, 1.183, 0.151),
        (model.audio_decoder, 0.025, 0.215),
    ):
        assert millions(*decoder.blocks.parameters()) == 7.093
        assert millions(*decoder.input_projection.parameters()) == 0.295
        assert millions(*decoder.output_projection.parameters()) == output
        assert millions(decoder.position_table) == positions


@pytest.mark.parametrize(
    ("variant", "students_share", "teachers_share"),
    [
        ("modality_specific", False, False),
        ("modality_agnostic_student", True, False),
        ("modality_agnostic_teacher_student", True, True),
    ],
)
def test_a_variant_is_who_shares_blocks(variant, students_share, teachers_share):
    model = micro_model(variant)
    assert (model.video_student.blocks is model.audio_student.blocks) == students_share
    assert (model.video_teacher.blocks is model.audio_teacher.blocks) == teachers_share
    assert model.video_student.blocks is not model.video_teacher.blocks
    assert model.video_student.norm is not model.audio_student.norm


@pytest.mark.parametrize("variant", VARIANTS)
def test_teachers_begin_as_copies_of_the_students(variant):
    model = micro_model(variant)
    for name in TEACHERS:
        teacher = getattr(model, name)
        student = getattr(model, name.replace("teacher", "student"))
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_trainable_parameter_gets_a_gradient_and_no_teacher_does(variant):
    model, config = micro_model(variant), micro_config(variant)
    output = model(micro_views())
    losses(
        output, initial_centers(96), config.objective, teacher_temperatures(config.objective, 0.0)
    )[0].backward()
    for name, parameter in model.named_parameters():
        if name.split(".")[0] in TEACHERS:
            assert parameter.grad is None, name
        else:
            assert parameter.grad.abs().sum() > 0, name


def test_one_seed_gives_one_model():
    torch.manual_seed(3)
    first = model_tensors(micro_model())
    torch.manual_seed(3)
    second = model_tensors(micro_model())
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("variant", VARIANTS)
def test_initialisation_leaves_no_parameter_unset(variant):
    model = micro_model(variant)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    model.init_weights()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_output_has_a_row_of_logits_for_each_view_and_clip():
    output = micro_model()(micro_views(num_clips=4, num_video_locals=3, num_audio_locals=2))
    assert output.video_student_logits.shape == (4, 4, 96)
    assert output.audio_student_logits.shape == (3, 4, 96)
    assert output.video_teacher_logits.shape == (4, 96)
    assert output.video_mask.sum(dim=1).tolist() == [output.video_errors.shape[1]] * 4 == [54] * 4
    assert output.audio_mask.sum(dim=1).tolist() == [output.audio_errors.shape[1]] * 4 == [26] * 4


def test_logits_of_a_clip_do_not_depend_on_its_batch():
    model, views = micro_model(), micro_views(num_clips=4)
    whole = model(views)
    half = model(
        views._replace(
            video_global=views.video_global[2:],
            video_locals=views.video_locals[:, 2:],
            audio_global=views.audio_global[2:],
            audio_locals=views.audio_locals[:, 2:],
            video_mask_noise=views.video_mask_noise[2:],
            audio_mask_noise=views.audio_mask_noise[2:],
        )
    )
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(
        half.video_student_logits, whole.video_student_logits[:, 2:], **close
    )
    torch.testing.assert_close(half.audio_teacher_logits, whole.audio_teacher_logits[2:], **close)


def test_the_student_does_not_see_hidden_patches():
    model, views = micro_model(), micro_views()
    before = model(views)
    hidden = before.video_mask.reshape(-1, 1, 4, 4, 4)
    pixels = hidden.repeat_interleave(2, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    brighter = torch.where(pixels, 3.0 + 2.0 * views.video_global, views.video_global)
    after = model(views._replace(video_global=brighter))
    # Normalized, the hidden patches are what they were.
    torch.testing.assert_close(after.video_errors, before.video_errors, atol=1e-5, rtol=1e-5)
    assert torch.equal(after.video_student_logits, before.video_student_logits)
    assert not torch.equal(after.video_teacher_logits, before.video_teacher_logits)


def test_teachers_see_the_global_view_or_the_first_local_one():
    model, views = micro_model(), micro_views(num_video_locals=2, num_audio_locals=2)
    changed = views._replace(
        video_locals=views.video_locals + torch.tensor([0.0, 1.0])[:, None, None, None, None, None]
    )
    for teacher_view in ("global", "first_local"):
        before, after = (model(v, teacher_view=teacher_view) for v in (views, changed))
        assert torch.equal(after.video_teacher_logits, before.video_teacher_logits)
    local = model(views._replace(video_global=views.video_global + 1.0), teacher_view="first_local")
    assert torch.equal(local.video_teacher_logits, before.video_teacher_logits)


def test_with_cross_refinement_the_other_modality_decides_which_tokens_count():
    """Of two sounds that a video comes with; the published map gives it the same features."""
    model, views = micro_model(), micro_views()
    other = views._replace(audio_global=torch.randn_like(views.audio_global))
    for parameter in model.audio_teacher_head.parameters():
        parameter.copy_(torch.randn_like(parameter))
    model.video_teacher_head.load_state_dict(model.audio_teacher_head.state_dict())

    def weights_moved(refinement):
        """Features are one direction per clip; how far two sounds turn it."""
        first, second = (
            model(v, refinement=refinement).video_teacher_features for v in (views, other)
        )
        return 1.0 - torch.nn.functional.cosine_similarity(first, second, dim=-1)

    assert (weights_moved("cross") > 10.0 * weights_moved("mean")).all()


def test_cross_refinement_weighs_by_what_the_heads_make_of_tokens():
    model, views = micro_model(), micro_views()
    with torch.no_grad():
        video, video_attention = model.video_teacher.tokens_and_attention(views.video_global)
        audio, audio_attention = model.audio_teacher.tokens_and_attention(views.audio_global)
        agreed = agreement(
            model.video_teacher_head(video[:, 1:]),
            model.audio_teacher_head(audio[:, 1:].mean(dim=1)),
        )
        expected = refine_and_pool(video[:, 1:], video_attention, audio_attention, "cross", agreed)
        output = model(views, refinement="cross")
    torch.testing.assert_close(output.video_teacher_features, expected)


def test_further_global_views_are_reconstructed_and_projected_but_the_teacher_sees_the_first():
    model, first, second = micro_model(), micro_views(num_audio_locals=2), micro_views()
    both = first._replace(
        video_global=torch.cat([first.video_global, second.video_global]),
        video_mask_noise=torch.cat([first.video_mask_noise, second.video_mask_noise]),
    )
    one, other, together = (model(views) for views in (first, second, both))
    close = {"atol": 1e-4, "rtol": 1e-4}
    rows = [one.video_student_logits[0], other.video_student_logits[0], one.video_student_logits[1]]
    torch.testing.assert_close(together.video_student_logits, torch.stack(rows), **close)
    for name in ("video_errors", "video_mask"):
        expected = torch.cat([getattr(one, name), getattr(other, name)])
        torch.testing.assert_close(getattr(together, name), expected, **close)
    for name in ("video_teacher_logits", "video_student_features", "audio_student_logits"):
        torch.testing.assert_close(getattr(together, name), getattr(one, name), **close)


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_without_aliases_restore_a_model(variant):
    saved = {name: tensor.clone() for name, tensor in model_tensors(micro_model(variant)).items()}
    model = micro_model(variant)
    load_model_tensors(model, saved)
    restored = model_tensors(model)
    assert all(torch.equal(restored[name], tensor) for name, tensor in saved.items())
    storages = [tensor.untyped_storage().data_ptr() for tensor in restored.values()]
    assert len(set(storages)) == len(storages)
    assert len(saved) == len(list(model.parameters()))


def test_loading_names_what_does_not_fit():
    model = micro_model()
    tensors = model_tensors(model)
    norm = tensors.pop("video_student.norm.bias")
    with pytest.raises(ValueError, match=r"missing: video_student\.norm\.bias; unexpected: extra"):
        load_model_tensors(model, {**tensors, "extra": norm})
    with pytest.raises(ValueError, match=r"shape: video_student\.norm\.bias \(1,\) instead of"):
        load_model_tensors(model, {**tensors, "video_student.norm.bias": torch.ones(1)})


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_views_that_share_a_block_pass_it_once(variant):
    model = micro_model(variant)
    calls = []
    for block in {*model.video_student.blocks, *model.audio_student.blocks}:
        block.register_forward_hook(lambda called, *_: calls.append(called))
    model(micro_views(num_video_locals=2))
    teaching = {*model.video_teacher.blocks}
    assert len(calls) == len({*model.video_student.blocks, *model.audio_student.blocks})
    assert teaching.isdisjoint(calls)
