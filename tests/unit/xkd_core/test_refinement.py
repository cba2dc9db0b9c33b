"""Facts about refinement."""

import pytest
import torch
import torch.nn.functional as F

from xkd_core.refinement import agreement, cross_modal_attention, refine, refine_and_pool


def attention_rows(num_patches):
    """CLS rows of a softmax over the patches and CLS, without CLS."""
    return torch.randn(4, 3, num_patches + 1).softmax(dim=-1)[:, :, 1:]


def test_the_mean_mode_is_the_outer_product_averaged_over_the_other_modality():
    video, audio = attention_rows(9).double(), attention_rows(8).double()
    outer = video[..., :, None] * audio[..., None, :]
    video_map = outer.mean(dim=-1) / video.mean(dim=-1, keepdim=True)
    audio_map = outer.mean(dim=-2) / audio.mean(dim=-1, keepdim=True)
    close = {"atol": 1e-6, "rtol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(cross_modal_attention(video, audio, "mean"), video_map, **close)
    torch.testing.assert_close(cross_modal_attention(audio, video, "mean"), audio_map, **close)


def test_the_softmax_mode_sums_to_one_over_patches():
    weights = cross_modal_attention(attention_rows(9), attention_rows(8), "softmax")
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(4, 3))


def test_refined_tokens_keep_the_norm_of_their_mean():
    tokens, weights = torch.randn(4, 9, 48), attention_rows(9)
    refined = refine(tokens, weights)
    torch.testing.assert_close(refined.mean(dim=1).norm(dim=-1), tokens.mean(dim=1).norm(dim=-1))


def test_only_the_proportions_of_the_weights_matter():
    tokens, weights = torch.randn(4, 9, 48), attention_rows(9)
    torch.testing.assert_close(refine(tokens, weights), refine(tokens, 0.01 * weights))


def test_uniform_weights_change_nothing():
    tokens = torch.randn(4, 9, 48)
    torch.testing.assert_close(refine(tokens, torch.full((4, 3, 9), 1 / 392)), tokens)


def test_tokens_that_vanish_stay_finite():
    assert not refine(torch.zeros(4, 9, 48), attention_rows(9)).isnan().any()


def test_without_refinement_tokens_are_pooled_plainly():
    tokens = torch.randn(4, 9, 48)
    pooled = refine_and_pool(tokens, attention_rows(9), attention_rows(8), "none")
    torch.testing.assert_close(pooled, tokens.mean(dim=1))


@pytest.mark.parametrize("mode", ["mean", "softmax"])
def test_refinement_changes_the_pooled_features(mode):
    tokens = torch.randn(4, 9, 48)
    pooled = refine_and_pool(tokens, attention_rows(9), attention_rows(8), mode)
    assert (pooled - tokens.mean(dim=1)).abs().max() > 1e-3


def test_in_the_published_modes_no_sound_moves_weight_from_patch_to_patch_of_a_head():
    video = attention_rows(9)
    one, other = (cross_modal_attention(video, attention_rows(8), "mean") for _ in range(2))
    torch.testing.assert_close(
        one / one.sum(dim=-1, keepdim=True), other / other.sum(dim=-1, keepdim=True)
    )


def test_agreement_is_the_exponential_of_the_cosine():
    token_logits, other = torch.randn(4, 9, 16), torch.randn(4, 16)
    cosine = F.cosine_similarity(token_logits, other[:, None], dim=-1)
    torch.testing.assert_close(agreement(token_logits, other), (cosine / 0.1).exp())


def test_cross_weighs_the_published_map_by_the_agreement_of_each_token():
    tokens, video, audio = torch.randn(4, 9, 48), attention_rows(9), attention_rows(8)
    agreed = torch.rand(4, 9)
    pooled = refine_and_pool(tokens, video, audio, "cross", agreed)
    weights = cross_modal_attention(video, audio, "mean").mean(dim=1) * agreed
    direction = (weights[:, :, None] * tokens).sum(dim=1)
    cosine = F.cosine_similarity(pooled, direction, dim=-1)
    torch.testing.assert_close(cosine, torch.ones(4))
    torch.testing.assert_close(pooled.norm(dim=-1), tokens.mean(dim=1).norm(dim=-1))


def test_where_all_tokens_agree_alike_cross_is_the_published_mean():
    tokens, video, audio = torch.randn(4, 9, 48), attention_rows(9), attention_rows(8)
    alike = torch.full((4, 9), 2.5)
    torch.testing.assert_close(
        refine_and_pool(tokens, video, audio, "cross", alike),
        refine_and_pool(tokens, video, audio, "mean"),
    )


def test_refinement_is_float32_under_autocast():
    tokens, video, audio = torch.randn(4, 9, 48), attention_rows(9), attention_rows(8)
    token_logits, other = torch.randn(4, 9, 16), torch.randn(4, 16)
    plain = [refine_and_pool(tokens, video, audio, mode) for mode in ("none", "mean", "softmax")]
    plain.append(agreement(token_logits, other))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            cast = [refine_and_pool(tokens, video, audio, m) for m in ("none", "mean", "softmax")]
            cast.append(agreement(token_logits, other))
        assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
