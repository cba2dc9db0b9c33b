"""One training step as anyone would write it in plain PyTorch: a baseline for `train_step.py`.

timm's blocks with fused attention, visible patches alone encoded, fused AdamW, bfloat16 autocast.
Losses, shapes and parameters are those of `published_step.py`; nothing of the product is used. The
published composition makes attention maps and projects hidden patches, which this one does not.

Method: XKD, arXiv:2211.13929.
"""

import torch
from published_step import PlainDecoder, PlainEncoder, PlainXKD, to_patches
from timm.models.vision_transformer import Block
from torch import nn


def blocks(size):
    return nn.ModuleList(
        Block(size.width, size.num_heads, norm_layer=nn.LayerNorm) for _ in range(size.depth)
    )


class BaselineEncoder(PlainEncoder):
    """Projects visible patches alone; the CLS row is the only attention that is made."""

    def __init__(self, config, modality):
        super().__init__(config, modality)
        self.blocks = blocks(config.encoder)

    def forward(self, clip, keep=None):
        patches, positions = to_patches(clip, self.patch), self.positions(clip)
        if keep is not None:
            index = keep[:, :, None]
            patches = patches.gather(1, index.expand(-1, -1, patches.shape[-1]))
            positions = positions.expand(len(clip), -1, -1)
            positions = positions.gather(1, index.expand(-1, -1, positions.shape[-1]))
        tokens = self.patch_projection(patches) + positions
        cls_token = self.cls_token + self.position_table[:, :1]
        tokens = torch.cat([cls_token.expand(len(clip), -1, -1), tokens], dim=1)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        last = self.blocks[-1]
        attention = None if torch.is_grad_enabled() else class_attention(last, tokens)
        return self.norm(last(tokens)), attention


def class_attention(block, tokens):
    """Attention of the CLS query to all tokens, with room for the axis of queries."""
    B, N, D = tokens.shape
    heads = block.attn.num_heads
    qkv = block.attn.qkv(block.norm1(tokens)).reshape(B, N, 3, heads, D // heads)
    query, key, _ = qkv.permute(2, 0, 3, 1, 4)
    scores = query[:, :, :1] @ key.transpose(-2, -1) * (D // heads) ** -0.5
    return scores.float().softmax(dim=-1)


class BaselineDecoder(PlainDecoder):
    """With timm's blocks."""

    def __init__(self, config, num_tokens, patch_dim):
        super().__init__(config, num_tokens, patch_dim)
        self.blocks = blocks(config.decoder)

    def forward(self, tokens, restore):
        tokens = self.input_projection(tokens)
        num_hidden = restore.shape[1] + 1 - tokens.shape[1]
        hidden = self.mask_token.to(tokens.dtype).expand(len(tokens), num_hidden, -1)
        patches = torch.cat([tokens[:, 1:], hidden], dim=1)
        patches = patches.gather(1, restore[:, :, None].expand(-1, -1, tokens.shape[-1]))
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.position_table
        for block in self.blocks:
            tokens = block(tokens)
        return self.output_projection(tokens)[:, 1:]


class Baseline(PlainXKD):
    """The networks of `XKD` under its names, and a step in bfloat16."""

    encoder, decoder = BaselineEncoder, BaselineDecoder
    dtype = torch.bfloat16

    def networks(self, views):
        """Runs the networks in bfloat16; the losses are computed from their outputs in float32."""
        with torch.autocast(views.video_global.device.type, dtype=self.dtype):
            errors, video, audio, teachers = super().networks(views)
        return (
            errors,
            [logits.float() for logits in video],
            [logits.float() for logits in audio],
            tuple(logits.float() for logits in teachers),
        )


class PublishedInBfloat16(PlainXKD):
    """The published composition with one line of autocast around all of a step's forward pass."""

    def loss(self, views, centers):
        with torch.autocast(views.video_global.device.type, dtype=torch.bfloat16):
            return super().loss(views, centers)


def fused_adamw(model, learning_rate):
    """AdamW with the published groups."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": 0.3},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
