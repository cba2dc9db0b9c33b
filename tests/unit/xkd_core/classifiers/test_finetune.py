"""Layer-wise rates, mixing of clips in the right axes, and erased boxes."""

import pytest
import torch

from xkd_core.classifiers.finetune import (
    Classifier,
    classification_loss,
    erase,
    layer_groups,
    mix,
    smooth,
)
from xkd_core.config import ModelConfig, TransformerConfig
from xkd_core.encoders import build_encoder


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rates_fall_from_the_head_to_the_patches():
    size = TransformerConfig(width=24, depth=3, num_heads=2)
    encoder = build_encoder(ModelConfig(encoder=size), "audio")
    model = Classifier(encoder, 24, 5, 0.5)
    groups = layer_groups(model, learning_rate=1.0, layer_decay=0.5, weight_decay=0.1)
    of = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    assert len(of) == len(list(model.parameters()))
    assert of[id(model.head.weight)] == (1.0, 0.1)
    assert of[id(model.head.bias)] == (1.0, 0.0)
    assert of[id(encoder.norm.weight)] == (1.0, 0.0)
    assert [of[id(block.attn.qkv.weight)][0] for block in encoder.blocks] == [0.125, 0.25, 0.5]
    assert of[id(encoder.patch_projection.weight)] == (0.0625, 0.1)
    assert of[id(encoder.cls_token)] == of[id(encoder.position_table)] == (0.0625, 0.0)


@pytest.mark.parametrize("shape", [(4, 3, 5, 20, 30), (4, 1, 20, 30)])
def test_a_box_lies_in_height_and_width_and_its_share_is_that_of_the_labels(shape):
    """Clip i is i everywhere, so a pixel says which clip it comes from."""
    clips = torch.arange(4.0).view(-1, *[1] * (len(shape) - 1)).expand(shape).contiguous()
    shares = set()
    for seed in range(20):
        mixed, targets = mix(clips, torch.eye(4), mixup=0.0, cutmix=1.0, generator=generator(seed))
        own = mixed == clips
        for clip in range(4):
            assert own[clip].float().mean() == pytest.approx(float(targets[clip, clip]), abs=1e-6)
            assert (mixed[clip][~own[clip]] == 3 - clip).all()
        flat = own.reshape(4, -1, *shape[-2:])
        assert (flat == flat[:, :1]).all()  # the same box in all frames and channels
        rows, columns = (~flat[0, 0]).any(dim=1).sum(), (~flat[0, 0]).any(dim=0).sum()
        assert (~flat[0, 0]).sum() == rows * columns
        shares.add(round(float(targets[0, 0]), 4))
    assert len(shares) > 10


def test_mixup_mixes_clips_and_labels_by_the_same_share():
    clips = torch.rand((6, 3, 2, 4, 4), generator=generator())
    mixed, targets = mix(clips, torch.eye(6), mixup=0.6, cutmix=0.0, generator=generator(3))
    share = float(targets[0, 0])
    assert 0.0 <= share <= 1.0
    torch.testing.assert_close(mixed, share * clips + (1 - share) * clips.flip(0))
    again, _ = mix(clips, torch.eye(6), mixup=0.6, cutmix=0.0, generator=generator(3))
    assert again.equal(mixed)
    same, _ = mix(clips, torch.eye(6), mixup=0.0, cutmix=0.0, generator=generator())
    assert same is clips


def test_both_kinds_of_mixing_are_taken():
    clips = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 8, 8).contiguous()
    kinds = {
        bool(((mixed == 0) | (mixed == 1)).all())
        for seed in range(12)
        for mixed, _ in [mix(clips, torch.eye(2), mixup=1.0, cutmix=1.0, generator=generator(seed))]
    }
    assert kinds == {True, False}


def test_an_erased_box_is_the_same_in_all_frames():
    clips = torch.zeros((40, 3, 4, 16, 16))
    erased = erase(clips, 0.25, generator())
    changed = (erased != 0).reshape(40, -1, 16, 16)
    assert 3 <= int(changed.flatten(1).any(dim=1).sum()) <= 20
    assert (changed == changed[:, :1]).all()
    assert not clips.any()
    assert erase(clips, 0.0, generator()).equal(clips)


def test_smoothed_labels_and_both_losses():
    targets = smooth(torch.eye(4), 0.1)
    assert targets.sum(dim=1).allclose(torch.ones(4))
    assert targets[0, 0] == pytest.approx(0.925)
    logits = torch.randn((4, 4), generator=generator())
    expected = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(classification_loss(logits, targets, is_multilabel=False), expected)
    several = (torch.rand((4, 4), generator=generator()) > 0.5).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, several)
    torch.testing.assert_close(classification_loss(logits, several, is_multilabel=True), expected)
