"""Facts about transformer blocks."""

import torch

from xkd_core.transformer import (
    attend,
    block_with_attention,
    init_transformer,
    transformer_blocks,
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


def test_training_in_bfloat16_attends_as_float32_does():
    query, key, value = torch.randn(3, 2, 3, 6, 8).bfloat16().requires_grad_()
    exact = attend(query.float(), key.float(), value.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        learned = attend(query, key, value)
        with torch.no_grad():
            seen = attend(query, key, value)
    assert learned.dtype == seen.dtype == torch.bfloat16
    torch.testing.assert_close(learned, exact.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(seen.float(), exact, rtol=2e-2, atol=2e-2)


def test_linear_layers_start_xavier_uniform_without_bias():
    block = transformer_blocks(64, 1, 4)[0]
    init_transformer(block)
    bound = (6.0 / (64 + 256)) ** 0.5
    assert 0.95 * bound < block.mlp.fc1.weight.abs().max() <= bound
    assert not block.mlp.fc1.bias.any()
