"""Facts about the teachers' moving average."""

import pytest
import torch

from tests.helpers.networks import micro_model
from xkd_core.ema import update_teachers


def moved(model, name):
    """How far the parameter of a teacher went from 0 towards its student's 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.requires_grad else 0.0)
    update_teachers(model, video_momentum=0.9, audio_momentum=0.8)
    values = model.get_parameter(name)
    assert (values == values.flatten()[0]).all()
    return values.flatten()[0].item()


@pytest.mark.parametrize("layer", ["norm.weight", "blocks.1.mlp.fc1.weight", "cls_token"])
def test_each_teacher_follows_with_its_own_momentum(layer):
    assert moved(micro_model(), f"video_teacher.{layer}") == pytest.approx(0.1)
    assert moved(micro_model(), f"audio_teacher.{layer}") == pytest.approx(0.2)


def test_heads_follow_too_and_their_shared_norm_once():
    assert moved(micro_model(), "video_teacher_head.bottleneck.weight") == pytest.approx(0.1)
    assert moved(micro_model(), "audio_teacher_head.norm_1.weight") == pytest.approx(0.2)


def test_blocks_that_teachers_share_are_updated_twice():
    model = micro_model("modality_agnostic_teacher_student")
    assert moved(model, "video_teacher.blocks.0.attn.qkv.weight") == pytest.approx(1 - 0.9 * 0.8)
    assert moved(model, "video_teacher.norm.weight") == pytest.approx(0.1)


def test_blocks_that_only_students_share_are_followed_by_two_teachers():
    model = micro_model("modality_agnostic_student")
    assert moved(model, "video_teacher.blocks.0.attn.qkv.weight") == pytest.approx(0.1)
    assert moved(model, "audio_teacher.blocks.0.attn.qkv.weight") == pytest.approx(0.2)


def test_a_momentum_of_1_changes_nothing():
    model = micro_model()
    with torch.no_grad():
        model.video_student.cls_token.add_(1.0)
    before = model.video_teacher.cls_token.clone()
    update_teachers(model, 1.0, 1.0)
    assert torch.equal(model.video_teacher.cls_token, before)
