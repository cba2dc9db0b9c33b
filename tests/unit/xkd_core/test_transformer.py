"""Facts about transformer blocks."""

import pytest
import torch
import torch.nn.functional as F

from xkd_core import transformer
from xkd_core.transformer import (
    attend,
    block_with_attention,
    checkpoint_activations,
    init_transformer,
    pack,
    transformer_blocks,
    unpack,
)


def explicit_block(block, tokens, num_heads):
    """One pre-norm block from its formula; also the whole attention map."""
    batch, length, width = tokens.shape
    query, key, value = (
        part.reshape(batch, length, num_heads, -1).transpose(1, 2)
        for part in (block.norm1(tokens) @ block.attn.qkv.weight.T).chunk(3, dim=-1)
    )
    scores = query @ key.transpose(-1, -2) / (width // num_heads) ** 0.5
    attention = scores.softmax(dim=-1)
    mixed = (attention @ value).transpose(1, 2).reshape(batch, length, width)
    tokens = tokens + block.attn.proj(mixed)
    hidden = torch.nn.functional.gelu(block.mlp.fc1(block.norm2(tokens)))
    return tokens + block.mlp.fc2(hidden), attention


def test_a_block_and_its_cls_attention_follow_the_formula():
    block = transformer_blocks(24, 1, 3)[0]
    tokens = torch.randn(2, 6, 24)
    expected, attention = explicit_block(block, tokens, 3)
    torch.testing.assert_close(block(tokens), expected)
    result, row = block_with_attention(block, tokens)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(row, attention[:, :, 0, 1:])


@pytest.mark.parametrize("is_recomputed", [False, True])
def test_packed_clips_pass_a_block_as_each_would_by_itself(is_recomputed):
    block = transformer_blocks(24, 1, 3)[0].double()
    sequences = [torch.randn(*shape, 24, dtype=torch.float64) for shape in ((2, 6), (3, 4), (1, 1))]
    expected = [block(tokens) for tokens in sequences]
    sum(tokens.square().sum() for tokens in expected).backward()
    gradients = [parameter.grad.clone() for parameter in block.parameters()]
    block.zero_grad()
    if is_recomputed:
        checkpoint_activations(block)
    groups = tuple(tuple(tokens.shape[:2]) for tokens in sequences)
    found = unpack(block(pack(sequences), groups=groups), groups)
    torch.testing.assert_close(found, expected)
    sum(tokens.square().sum() for tokens in found).backward()
    for parameter, gradient in zip(block.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_attention_clip_by_clip_is_that_of_all_clips_at_once(monkeypatch):
    leaves = [part.requires_grad_() for part in torch.randn(3, 4, 2, 40, 8).bfloat16().unbind()]
    upstream = torch.randn(4, 2, 40, 8).bfloat16()

    def results():
        mixed = attend(*leaves)
        return [mixed, *torch.autograd.grad(mixed, leaves, upstream)]

    at_once = results()
    monkeypatch.setattr(transformer, "_LARGEST_MAP", 4 * 2 * 40 * 40 - 1)
    for one, all_clips in zip(results(), at_once, strict=True):
        assert torch.equal(one, all_clips)


def test_layer_norms_use_the_published_eps():
    block = transformer_blocks(24, 1, 3)[0]
    assert (block.norm1.eps, block.norm2.eps) == (1e-5, 1e-5)


def test_queries_keys_and_values_have_no_bias():
    names = {name for name, _ in transformer_blocks(24, 1, 3)[0].named_parameters()}
    assert "attn.qkv.bias" not in names
    assert "attn.proj.bias" in names


def test_attention_is_float32_under_autocast():
    block = transformer_blocks(24, 1, 3)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, row = block_with_attention(block, torch.randn(2, 6, 24))
    assert row.dtype == torch.float32


@pytest.mark.parametrize("num_tokens", [61, 561])
@pytest.mark.parametrize(("sharpness", "largest_error"), [(1.0, 0.008), (3.0, 0.04)])
def test_attention_in_bfloat16_is_nearly_that_of_float64(num_tokens, sharpness, largest_error):
    """Scores have a deviation of 1, as trained ones do, and of 9; fused attention errs by 0.004."""
    torch.manual_seed(0)
    numbers = sharpness * torch.randn(3, 1, 4, num_tokens, 64)
    upstream = torch.randn(1, 4, num_tokens, 64)

    def results(dtype):
        leaves = [number.to(dtype).requires_grad_() for number in numbers.bfloat16()]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            mixed = attend(*leaves)
        assert mixed.dtype == dtype
        return [mixed, *torch.autograd.grad(mixed, leaves, upstream.bfloat16().to(dtype))]

    for value, exact in zip(results(torch.bfloat16), results(torch.float64), strict=True):
        assert error(value, exact) < largest_error


def test_a_long_sequence_needs_no_attention_map(monkeypatch):
    query, key, value = torch.randn(3, 1, 2, 40, 8).bfloat16()
    short = attend(query, key, value)
    monkeypatch.setattr(transformer, "_LONGEST_MAP", 39)
    fused = attend(query, key, value)
    assert torch.equal(fused, F.scaled_dot_product_attention(query, key, value))
    torch.testing.assert_close(short, fused, rtol=2e-2, atol=2e-2)


def error(value, exact):
    return ((value.double() - exact).norm() / exact.norm()).item()


def test_linear_layers_start_xavier_uniform_without_bias():
    block = transformer_blocks(64, 1, 4)[0]
    init_transformer(block)
    bound = (6.0 / (64 + 256)) ** 0.5
    assert 0.95 * bound < block.mlp.fc1.weight.abs().max() <= bound
    assert not block.mlp.fc1.bias.any()
