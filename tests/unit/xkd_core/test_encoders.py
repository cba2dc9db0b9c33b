"""Facts about encoders."""

import pytest
import torch

from tests.helpers.networks import micro_config
from xkd_core.config import ModelConfig, TransformerConfig
from xkd_core.encoders import EncoderInput, build_encoder, encode_together, pool_patches
from xkd_core.masking import random_mask, take_tokens
from xkd_core.patches import to_patches

CLIPS = {"video": (2, 3, 8, 32, 32), "audio": (2, 1, 16, 64)}
LOCAL_CLIPS = {"video": (2, 3, 2, 24, 24), "audio": (2, 1, 16, 16)}
MODALITIES = ("video", "audio")


def encoder_of(modality):
    return build_encoder(micro_config().model, modality)


def test_the_papers_views_have_392_72_560_and_140_tokens():
    model = ModelConfig(encoder=TransformerConfig(width=12, depth=1, num_heads=2))
    shapes = {
        "video": ((1, 3, 32, 112, 112), (1, 3, 8, 96, 96)),
        "audio": ((1, 1, 80, 448), (1, 1, 80, 112)),
    }
    counts = [
        build_encoder(model, modality)(torch.zeros(shape)).shape[1] - 1
        for modality, pair in shapes.items()
        for shape in pair
    ]
    assert counts == [392, 72, 560, 140]


@pytest.mark.parametrize("modality", MODALITIES)
def test_masked_tokens_are_those_of_projecting_every_patch_first(modality):
    encoder, clip = encoder_of(modality), torch.randn(CLIPS[modality])
    patches = to_patches(clip, encoder.patch_size)
    mask = random_mask(torch.rand(2, patches.shape[1]), 9)
    tokens = encoder.patch_projection(patches) + encoder.position_table[:, 1:]
    cls_token = (encoder.cls_token + encoder.position_table[:, :1]).expand(2, -1, -1)
    tokens = torch.cat([cls_token, take_tokens(tokens, mask.keep)], dim=1)
    for block in encoder.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(encoder(clip, mask.keep), encoder.norm(tokens))


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("shapes", [CLIPS, LOCAL_CLIPS])
def test_tokens_are_the_same_with_and_without_attention(modality, shapes):
    encoder, clip = encoder_of(modality), torch.randn(shapes[modality])
    tokens, attention = encoder.tokens_and_attention(clip)
    torch.testing.assert_close(tokens, encoder(clip))
    assert attention.shape == (2, 3, tokens.shape[1] - 1)
    assert (attention.sum(dim=-1) < 1.0).all()


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_embedding_is_the_mean_of_the_patch_tokens(modality):
    encoder, clip = encoder_of(modality), torch.randn(CLIPS[modality])
    torch.testing.assert_close(encoder.embed(clip), encoder(clip)[:, 1:].mean(dim=1))


def test_pooling_leaves_cls_out():
    tokens = torch.randn(2, 5, 3)
    changed = torch.cat([torch.zeros(2, 1, 3), tokens[:, 1:]], dim=1)
    assert torch.equal(pool_patches(tokens), pool_patches(changed))


def test_encoders_can_share_blocks():
    model = micro_config().model
    video = build_encoder(model, "video")
    audio = build_encoder(model, "audio", video.blocks)
    assert audio.blocks is video.blocks


def test_a_clip_of_a_wrong_size_is_refused():
    with pytest.raises(ValueError, match=r"clip size \(8, 30, 32\) must be a multiple"):
        encoder_of("video")(torch.randn(1, 3, 8, 30, 32))


def test_initialisation_leaves_no_parameter_unset():
    encoder = encoder_of("video")
    for parameter in encoder.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    encoder.init_weights()
    assert all(parameter.isfinite().all() for parameter in encoder.parameters())


def test_views_that_are_encoded_together_have_the_tokens_that_each_would_have():
    model = micro_config().model
    video = build_encoder(model, "video").double()
    audio = build_encoder(model, "audio", video.blocks).double()
    clips = {name: torch.randn(shape, dtype=torch.float64) for name, shape in CLIPS.items()}
    local = torch.randn(LOCAL_CLIPS["video"], dtype=torch.float64)
    keep = random_mask(torch.rand(2, 64), 9).keep
    inputs = [
        EncoderInput(video, clips["video"], keep),
        EncoderInput(video, local),
        EncoderInput(audio, clips["audio"]),
    ]
    for tokens, one in zip(encode_together(inputs), inputs, strict=True):
        torch.testing.assert_close(tokens, one.encoder(one.clip, one.keep))
