"""Facts about the projection head."""

import pytest
import torch
import torch.nn.functional as F

from xkd_core.heads import ProjectionHead


def small_head(**changes):
    sizes = {"width": 16, "hidden_width": 32, "bottleneck_width": 8, "output_width": 64}
    flags = {"share_hidden_norm": True, "normalize_output": True}
    return ProjectionHead(**{**sizes, **flags, **changes})


def test_the_head_follows_the_formula():
    head, features = small_head(), torch.randn(5, 16)
    torch.nn.init.normal_(head.norm_1.weight)
    hidden = F.gelu(head.norm_1(head.hidden_1(features)))
    hidden = F.gelu(head.norm_2(head.hidden_2(hidden)))
    bottleneck = head.bottleneck(hidden)
    directions = bottleneck / bottleneck.norm(dim=-1, keepdim=True)
    prototypes = head.prototypes.weight / head.prototypes.weight.norm(dim=-1, keepdim=True)
    logits = directions @ prototypes.T
    centered = logits - logits.mean(dim=-1, keepdim=True)
    expected = centered / (logits.var(dim=-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(head(features), expected)


def test_logits_have_a_squared_norm_of_about_8171_at_the_papers_width():
    head = ProjectionHead(
        width=768,
        hidden_width=2048,
        bottleneck_width=256,
        output_width=8192,
        share_hidden_norm=True,
        normalize_output=True,
    )
    squared_norms = head(torch.randn(4, 768)).square().sum(dim=-1)
    torch.testing.assert_close(squared_norms, torch.full((4,), 8171.0), atol=3.0, rtol=0)


def test_both_hidden_layers_share_one_norm_as_published():
    head = small_head()
    assert head.norm_1 is head.norm_2
    assert len(list(head.parameters())) == 6 + 2 + 1


def test_each_hidden_layer_can_have_its_own_norm():
    assert small_head(share_hidden_norm=False).norm_2 is not small_head().norm_1
    assert len(list(small_head(share_hidden_norm=False).parameters())) == 6 + 4 + 1


def test_the_length_of_a_prototype_does_not_matter():
    head, features = small_head(), torch.randn(5, 16)
    before = head(features)
    with torch.no_grad():
        head.prototypes.weight.mul_(torch.rand(64, 1) + 0.5)
    torch.testing.assert_close(head(features), before)


def test_without_output_norm_logits_are_cosines():
    assert small_head(normalize_output=False)(torch.randn(50, 16)).abs().max() <= 1.0


@pytest.mark.parametrize("normalize_output", [True, False])
def test_logits_are_float32_under_autocast(normalize_output):
    head = small_head(normalize_output=normalize_output)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.randn(5, 16)).dtype == torch.float32


def test_initialisation_leaves_no_parameter_unset():
    head = small_head(share_hidden_norm=False)
    for parameter in head.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    head.init_weights()
    assert all(parameter.isfinite().all() for parameter in head.parameters())
