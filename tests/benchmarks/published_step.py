"""One training step as published, composed plainly: what `train_step.py` compares with.

Float32, every attention map made whole, all patches projected before they are hidden, each view by
itself, clipping, AdamW and moving averages tensor by tensor. Modules have the names of `XKD`'s, so
that they take its tensors. Written from the method's description; it is no part of the product.

Method: XKD, arXiv:2211.13929.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from xkd_core.config import MethodConfig, num_visible

MODALITIES = ("video", "audio")
ROLES = ("student", "teacher")


class Attention(nn.Module):
    """Multi-head attention that makes the whole map and gives it back."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens):
        B, N, D = tokens.shape
        qkv = self.qkv(tokens).reshape(B, N, 3, self.num_heads, D // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scores = (query @ key.transpose(-2, -1)) * (D // self.num_heads) ** -0.5
        attention = scores.softmax(dim=-1)
        mixed = (attention @ value).transpose(1, 2).reshape(B, N, D)
        return self.proj(mixed), attention


class Mlp(nn.Module):
    """Four times the width, exact GELU."""

    def __init__(self, width):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens):
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """A pre-norm block; also gives its attention."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, tokens):
        mixed, attention = self.attn(self.norm1(tokens))
        tokens = tokens + mixed
        return tokens + self.mlp(self.norm2(tokens)), attention


def to_patches(clip, patch):
    if len(patch) == 3:
        pattern = "b c (t pt) (h ph) (w pw) -> b (t h w) (pt ph pw c)"
        return rearrange(clip, pattern, pt=patch[0], ph=patch[1], pw=patch[2])
    return rearrange(clip, "b c (m pm) (t pt) -> b (m t) (pm pt c)", pm=patch[0], pt=patch[1])


class PlainEncoder(nn.Module):
    """A ViT that projects all patches and then drops those that are hidden."""

    def __init__(self, config, modality):
        super().__init__()
        size = config.encoder
        if modality == "video":
            video = config.video
            self.patch = (video.tubelet_size, video.patch_size, video.patch_size)
            self.grid, patch_dim = video.grid, video.patch_dim
        else:
            audio = config.audio
            self.patch = (audio.patch_bins, audio.patch_frames)
            self.grid, patch_dim = audio.grid, audio.patch_dim
        num_tokens = 1 + torch.Size(self.grid).numel()
        self.patch_projection = nn.Linear(patch_dim, size.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, size.width))
        self.position_table = nn.Parameter(torch.empty(1, num_tokens, size.width))
        self.blocks = nn.ModuleList(Block(size.width, size.num_heads) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width)

    def positions(self, clip):
        table = self.position_table[:, 1:]
        grid = tuple(n // p for n, p in zip(clip.shape[2:], self.patch, strict=True))
        if grid == self.grid:
            return table
        factors = tuple((new + 0.1) / old for new, old in zip(grid, self.grid, strict=True))
        if len(grid) == 2:  # frequency stays as it is
            factors = (1.0, factors[1])
        mode = "trilinear" if len(grid) == 3 else "bicubic"
        image = table.reshape(1, *self.grid, -1).movedim(-1, 1)
        resized = F.interpolate(image, scale_factor=factors, mode=mode, align_corners=False)
        return resized.movedim(1, -1).flatten(1, -2)

    def forward(self, clip, keep=None):
        tokens = self.patch_projection(to_patches(clip, self.patch)) + self.positions(clip)
        if keep is not None:
            tokens = tokens.gather(1, keep[:, :, None].expand(-1, -1, tokens.shape[-1]))
        cls_token = self.cls_token + self.position_table[:, :1]
        tokens = torch.cat([cls_token.expand(len(clip), -1, -1), tokens], dim=1)
        attention = None
        for block in self.blocks:
            tokens, attention = block(tokens)
        return self.norm(tokens), attention


class PlainDecoder(nn.Module):
    """From visible tokens to all patches."""

    def __init__(self, config, num_tokens, patch_dim):
        super().__init__()
        size = config.decoder
        same = config.encoder.width == size.width
        self.input_projection = (
            nn.Identity() if same else nn.Linear(config.encoder.width, size.width)
        )
        self.mask_token = nn.Parameter(torch.empty(1, 1, size.width))
        self.position_table = nn.Parameter(torch.empty(1, 1 + num_tokens, size.width))
        self.blocks = nn.ModuleList(Block(size.width, size.num_heads) for _ in range(size.depth))
        self.output_projection = nn.Linear(size.width, patch_dim)

    def forward(self, tokens, restore):
        tokens = self.input_projection(tokens)
        num_hidden = restore.shape[1] + 1 - tokens.shape[1]
        hidden = self.mask_token.expand(len(tokens), num_hidden, -1)
        patches = torch.cat([tokens[:, 1:], hidden], dim=1)
        patches = patches.gather(1, restore[:, :, None].expand(-1, -1, tokens.shape[-1]))
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.position_table
        for block in self.blocks:
            tokens, _ = block(tokens)
        return self.output_projection(tokens)[:, 1:]


class PlainHead(nn.Module):
    """MLP, L2 norm, weight-normed layer, LayerNorm without parameters; one hidden LayerNorm."""

    def __init__(self, config, width):
        super().__init__()
        head = config.head
        self.hidden_1 = nn.Linear(width, head.hidden_width)
        self.norm_1 = nn.LayerNorm(head.hidden_width)
        self.hidden_2 = nn.Linear(head.hidden_width, head.hidden_width)
        self.norm_2 = self.norm_1
        self.bottleneck = nn.Linear(head.hidden_width, head.bottleneck_width)
        self.prototypes = nn.Linear(head.bottleneck_width, head.output_width, bias=False)

    def forward(self, features):
        hidden = F.gelu(self.norm_1(self.hidden_1(features)))
        hidden = F.gelu(self.norm_2(self.hidden_2(hidden)))
        directions = F.normalize(self.bottleneck(hidden), dim=-1)
        logits = F.linear(directions, F.normalize(self.prototypes.weight, dim=-1))
        return F.layer_norm(logits, logits.shape[-1:])


class PlainXKD(nn.Module):
    """The networks of `XKD` under its names, and a step."""

    encoder: type[PlainEncoder] = PlainEncoder
    decoder: type[PlainDecoder] = PlainDecoder

    def __init__(self, config: MethodConfig):
        super().__init__()
        model = self.config = config.model
        self.objective = config.objective
        for modality in MODALITIES:
            section = model.video if modality == "video" else model.audio
            for role in ROLES:
                setattr(self, f"{modality}_{role}", self.encoder(model, modality))
                setattr(self, f"{modality}_{role}_head", PlainHead(model, model.encoder.width))
            decoder = self.decoder(model, section.num_tokens, section.patch_dim)
            setattr(self, f"{modality}_decoder", decoder)

    def part(self, modality, name):
        return getattr(self, f"{modality}_{name}")

    def student(self, modality, clip, local_clips, noise):
        """Reconstruction loss and the logits of all views."""
        section = self.config.video if modality == "video" else self.config.audio
        visible = num_visible(section.num_tokens, section.mask_ratio)
        order = noise.argsort(dim=1)
        restore = order.argsort(dim=1)
        encoder, head = self.part(modality, "student"), self.part(modality, "student_head")
        tokens, _ = encoder(clip, order[:, :visible])
        patches = to_patches(clip, encoder.patch)
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        target = (patches - mean) / (variance + 1e-6).sqrt()
        error = (self.part(modality, "decoder")(tokens, restore) - target).square().mean(-1)
        hidden = (restore >= visible).float()
        logits = [head(tokens[:, 1:].mean(dim=1))]
        logits += [head(encoder(local)[0][:, 1:].mean(dim=1)) for local in local_clips]
        return (error * hidden).sum() / hidden.sum(), logits

    @torch.no_grad()
    def teachers(self, views):
        """Logits of both teachers on refined tokens; the outer product of the maps is made."""
        video, video_map = self.video_teacher(views.video_global)
        audio, audio_map = self.audio_teacher(views.audio_global)
        video_map, audio_map = video_map[:, :, 0, 1:], audio_map[:, :, 0, 1:]
        outer = video_map[:, :, :, None] * audio_map[:, :, None, :]
        of_video = outer.mean(dim=3) / video_map.mean(dim=2, keepdim=True)
        of_audio = outer.mean(dim=2) / audio_map.mean(dim=2, keepdim=True)
        return (
            self.video_teacher_head(refine(video[:, 1:], of_video.mean(dim=1))),
            self.audio_teacher_head(refine(audio[:, 1:], of_audio.mean(dim=1))),
        )

    def networks(self, views):
        """Reconstruction losses and logits of both students, and the teachers' logits."""
        video_error, video = self.student(
            "video", views.video_global, views.video_locals, views.video_mask_noise
        )
        audio_error, audio = self.student(
            "audio", views.audio_global, views.audio_locals, views.audio_mask_noise
        )
        return video_error + audio_error, video, audio, self.teachers(views)

    def loss(self, views, centers):
        """The total loss, and the teachers' logits for the centres."""
        errors, video, audio, (of_video, of_audio) = self.networks(views)
        objective = self.objective
        alignment = mmd(torch.cat(video), torch.cat(audio), objective.mmd_gammas)
        alignment = 0.5 * (alignment + mmd(of_video, of_audio, objective.mmd_gammas))
        distillation = 0.5 * (
            distill(audio, of_video - centers[0], objective.video_teacher_temperature.start)
            + distill(video, of_audio - centers[1], objective.audio_teacher_temperature.start)
        )
        total = alignment + distillation + 5.0 * 0.5 * errors
        return total / 7.0, (of_video, of_audio)

    def step(self, views, centers, optimizer, *, max_norm, momentum):
        """Learns from one batch; returns the loss."""
        loss, teacher_logits = self.loss(views, centers)
        loss.backward()
        for modality in MODALITIES:
            for part in ("student", "student_head"):
                clip_one_by_one(self.part(modality, part), max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for center, logits in zip(centers, teacher_logits, strict=True):
                center.mul_(0.9).add_(logits.mean(dim=0), alpha=0.1)
            for modality in MODALITIES:
                for suffix in ("", "_head"):
                    teacher = self.part(modality, f"teacher{suffix}").parameters()
                    student = self.part(modality, f"student{suffix}").parameters()
                    for mine, other in zip(teacher, student, strict=True):
                        mine.mul_(momentum).add_(other.detach(), alpha=1.0 - momentum)
        return loss.detach()


def refine(tokens, weights):
    weighted = tokens * weights[:, :, None]
    norm, weighted_norm = tokens.mean(1).norm(dim=-1), weighted.mean(1).norm(dim=-1)
    return (weighted * (norm / weighted_norm)[:, None, None]).mean(dim=1)


def mmd(x, y, gammas):
    def kernel_mean(a, b):
        squares = a.square().sum(1)[:, None] + b.square().sum(1)[None, :]
        distances = (squares - 2.0 * a @ b.T).clamp_min(1e-30)
        return sum(torch.exp(-gamma * distances) for gamma in gammas).mean()

    return kernel_mean(x, x) + kernel_mean(y, y) - 2.0 * kernel_mean(x, y)


def distill(student_logits, centered, temperature):
    targets = F.softmax(centered / temperature, dim=-1)
    terms = [-(targets * F.log_softmax(z / 0.1, dim=-1)).sum(-1).mean() for z in student_logits]
    return sum(terms) / len(terms)


def clip_one_by_one(module, max_norm):
    for parameter in module.parameters():
        if parameter.grad is not None:
            scale = max_norm / (parameter.grad.norm() + 1e-6)
            if scale < 1:
                parameter.grad.mul_(scale)
