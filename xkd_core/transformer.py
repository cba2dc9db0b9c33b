"""Pre-norm transformer blocks, the one place that knows timm.

Blocks have no dropout and no bias on queries, keys and values. `block_with_attention` runs a block
as timm does and also returns what its CLS token attends to, without making the whole map.

Paper: ViT, arXiv:2010.11929.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import nn
from torch.utils.checkpoint import checkpoint

from xkd_core.shapes import Float, Tensor


class SelfAttention(Attention):
    """timm's attention, by `attend`; neither masks nor dropout."""

    def forward(
        self,
        tokens: Float[Tensor, "B N_all D"],
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "B N_all D"]:
        """Mixes the tokens of each clip."""
        assert attn_mask is None
        assert not is_causal
        mixed = attend(*_queries_keys_values(self, tokens))
        return self.proj(rearrange(mixed, "b a n d -> b n (a d)"))


def attend(
    query: Float[Tensor, "B A N_all d"],
    key: Float[Tensor, "B A N_all d"],
    value: Float[Tensor, "B A N_all d"],
) -> Float[Tensor, "B A N_all d"]:
    """Attention of every query to every key, without making the whole map."""
    if query.requires_grad and query.dtype == torch.bfloat16 and query.device.type == "cpu":
        # A CPU's backward pass takes about half as long in float32 as in bfloat16.
        with torch.autocast("cpu", enabled=False):
            mixed = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
        return mixed.to(value.dtype)
    return F.scaled_dot_product_attention(query, key, value)


def transformer_blocks(width: int, depth: int, num_heads: int) -> nn.ModuleList:
    """A stack of blocks with an MLP of four times the width and the exact GELU."""
    return nn.ModuleList(
        # PyTorch's LayerNorm has the published eps of 1e-5; timm's own default has another.
        Block(
            width,
            num_heads,
            mlp_ratio=4.0,
            qkv_bias=False,
            norm_layer=nn.LayerNorm,
            attn_layer=SelfAttention,
        )
        for _ in range(depth)
    )


def block_with_attention(
    block: nn.Module, tokens: Float[Tensor, "B N_all D"]
) -> tuple[Float[Tensor, "B N_all D"], Float[Tensor, "B A N"]]:
    """Runs one block; also returns the attention of its CLS query to each patch token.

    The attention to CLS itself is left out and the rest is not renormalised, so a row sums to one
    minus that attention. It is computed in float32.
    """
    attention = block.get_submodule("attn")
    assert isinstance(attention, SelfAttention)
    query, key, value = _queries_keys_values(attention, block.get_submodule("norm1")(tokens))
    mixed = rearrange(attend(query, key, value), "b a n d -> b n (a d)")
    tokens = tokens + attention.get_submodule("proj")(mixed)
    tokens = tokens + block.get_submodule("mlp")(block.get_submodule("norm2")(tokens))
    return tokens, _class_attention(query[:, :, 0], key)


def checkpoint_activations(block: nn.Module) -> None:
    """Makes a block compute its activations again in the backward pass instead of keeping them."""
    forward = block.forward

    def recomputed(tokens: Tensor) -> Tensor:
        output: Tensor = checkpoint(forward, tokens, use_reentrant=False, preserve_rng_state=False)
        return output

    block.forward = recomputed


def init_transformer(module: nn.Module) -> None:
    """Every linear layer Xavier-uniform with bias 0, every LayerNorm 1 and 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()


def _queries_keys_values(
    attention: SelfAttention, tokens: Float[Tensor, "B N_all D"]
) -> Float[Tensor, "3 B A N_all d"]:
    packed = attention.qkv(tokens)
    return rearrange(packed, "b n (qkv a d) -> qkv b a n d", qkv=3, a=attention.num_heads)


def _class_attention(
    query: Float[Tensor, "B A d"], key: Float[Tensor, "B A N_all d"]
) -> Float[Tensor, "B A N"]:
    with torch.autocast(query.device.type, enabled=False):
        scale = query.shape[-1] ** -0.5
        scores = torch.einsum("bad,band->ban", query.float() * scale, key.float())
        return scores.softmax(dim=-1)[:, :, 1:]
