"""Facts about the published names; the published numbers are in test_golden.py."""

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.networks import VARIANTS, micro_config, micro_model
from xkd_core.config import ModelConfig
from xkd_core.encoders import build_encoder
from xkd_core.losses import Centers
from xkd_core.published.names import (
    load_published,
    load_published_encoder,
    to_published,
    to_published_encoder,
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_published_checkpoint_goes_in_and_comes_out_the_same(golden_dir, variant):
    published = load_file(golden_dir / variant / "weights.safetensors")
    model = micro_model(variant)
    back = to_published(model, load_published(model, published))
    assert back.keys() == published.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in published.items())


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_a_published_vit_b_encoder_has_138_tensors(modality):
    with torch.device("meta"):
        tensors = to_published_encoder(build_encoder(ModelConfig(), modality))
    assert len(tensors) == 138
    tokenizer = {"video": "cuboid_embed", "audio": "patch_embed"}[modality]
    assert f"{tokenizer}.proj.weight" in tensors
    assert tensors["encoder.blocks.11.attn.qkv.weight"].shape == (2304, 768)
    assert tensors["enc_pos_embed"].shape == (1, {"video": 393, "audio": 561}[modality], 768)


def test_an_encoder_goes_through_its_published_file():
    first, second = (build_encoder(micro_config().model, "audio") for _ in range(2))
    load_published_encoder(second, to_published_encoder(first))
    clip = torch.randn(2, 1, 16, 64)
    assert torch.equal(second(clip), first(clip))


def published_micro(variant="modality_specific"):
    tensors = to_published(micro_model(variant), Centers(torch.ones(96), torch.zeros(96)))
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def test_centers_belong_to_the_teacher_whose_logits_they_center():
    centers = load_published(micro_model(), published_micro())
    assert centers.video.sum() == 96
    assert centers.audio.sum() == 0


def test_the_prefix_of_a_distributed_model_is_dropped():
    tensors = {f"module.{name}": tensor for name, tensor in published_micro().items()}
    load_published(micro_model(), tensors)


def test_missing_left_over_and_misshapen_tensors_are_named():
    tensors = published_micro()
    norm = tensors.pop("vid_student.backbone.encoder_norm.bias")
    with pytest.raises(ValueError, match=r"missing: \['vid_student\.backbone\.encoder_norm\.bias"):
        load_published(micro_model(), tensors)
    with pytest.raises(ValueError, match=r"unexpected: \['stray'\]"):
        load_published(micro_model(), {**published_micro(), "stray": norm})
    wrong = {**published_micro(), "vid_student.backbone.encoder_norm.bias": torch.ones(3)}
    with pytest.raises(ValueError, match=r"encoder_norm\.bias has shape \(3,\), but the model"):
        load_published(micro_model(), wrong)


def test_blocks_that_should_be_shared_but_differ_are_named():
    tensors = published_micro("modality_agnostic_student")
    tensors["vid_student.backbone.encoder.blocks.0.mlp.fc1.bias"] += 1.0
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.fc1\.bias differs from another tensor"):
        load_published(micro_model("modality_agnostic_student"), tensors)
