"""The networks of XKD: students, teachers, heads and decoders of both modalities.

`XKD.forward` runs all networks and computes no loss. The three published variants differ in which
networks share transformer blocks. Shared blocks are the same module object, so a `state_dict` lists
their tensors under several names; `model_tensors` lists each tensor once.

Paper: XKD, arXiv:2211.13929.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import nn

from xkd_core.config import ModelConfig
from xkd_core.decoder import Decoder
from xkd_core.encoders import (
    Encoder,
    EncoderInput,
    build_encoder,
    encode_together,
    pool_patches,
)
from xkd_core.heads import ProjectionHead
from xkd_core.masking import TokenMask, random_mask
from xkd_core.patches import patch_errors
from xkd_core.refinement import Refinement, agreement, refine_and_pool
from xkd_core.regions import region
from xkd_core.shapes import Bool, Float, Int, Tensor
from xkd_core.sharding import cut_like, local_part
from xkd_core.views.views import Views

TeacherView = Literal["global", "first_local"]


class _StudentOutput(NamedTuple):
    """Output of one modality's student for all its views."""

    errors: Float[Tensor, "GB N_hidden"]
    mask: Bool[Tensor, "GB N"]
    logits: Float[Tensor, "J B K"]
    features: Float[Tensor, "B D"]


class XKDOutput(NamedTuple):
    """Output of one forward pass, from which losses and health measures are computed."""

    video_errors: Float[Tensor, "GB N_hidden"]
    """Mean squared error of each patch of the global views that the student did not see."""
    audio_errors: Float[Tensor, "GB_audio N_hidden_audio"]
    video_mask: Bool[Tensor, "GB N"]
    """True for patches that the student did not see."""
    audio_mask: Bool[Tensor, "GB_audio N_audio"]
    video_student_logits: Float[Tensor, "J B K"]
    """Logits of the masked global views, then of the local views."""
    audio_student_logits: Float[Tensor, "J_audio B K"]
    video_teacher_logits: Float[Tensor, "B K"]
    """Without gradient, like all outputs of teachers."""
    audio_teacher_logits: Float[Tensor, "B K"]
    video_student_features: Float[Tensor, "B D"]
    """Pooled tokens of the first masked global view."""
    audio_student_features: Float[Tensor, "B D"]
    video_teacher_features: Float[Tensor, "B D"]
    """Pooled refined tokens, the input of the teacher's head."""
    audio_teacher_features: Float[Tensor, "B D"]


class XKD(nn.Module):
    """Two students and two teachers with heads, and two decoders; built by `build_xkd`."""

    def __init__(
        self,
        *,
        video_student: Encoder,
        audio_student: Encoder,
        video_student_head: ProjectionHead,
        audio_student_head: ProjectionHead,
        video_decoder: Decoder,
        audio_decoder: Decoder,
        video_teacher: Encoder,
        audio_teacher: Encoder,
        video_teacher_head: ProjectionHead,
        audio_teacher_head: ProjectionHead,
        num_visible_video: int,
        num_visible_audio: int,
    ) -> None:
        super().__init__()
        self.video_student = video_student
        self.audio_student = audio_student
        self.video_student_head = video_student_head
        self.audio_student_head = audio_student_head
        self.video_decoder = video_decoder
        self.audio_decoder = audio_decoder
        self.video_teacher = video_teacher
        self.audio_teacher = audio_teacher
        self.video_teacher_head = video_teacher_head
        self.audio_teacher_head = audio_teacher_head
        self.num_visible_video = num_visible_video
        self.num_visible_audio = num_visible_audio
        self.copy_students_to_teachers()

    def init_weights(self) -> None:
        """Initializes all parameters; teachers become copies of the students."""
        for module in (self.video_student, self.audio_student):
            module.init_weights()
        for head in (self.video_student_head, self.audio_student_head):
            head.init_weights()
        for decoder in (self.video_decoder, self.audio_decoder):
            decoder.init_weights()
        self.copy_students_to_teachers()

    def copy_students_to_teachers(self) -> None:
        """Copies students to teachers, which then only change by their moving average."""
        pairs: tuple[tuple[nn.Module, nn.Module], ...] = (
            (self.video_teacher, self.video_student),
            (self.audio_teacher, self.audio_student),
            (self.video_teacher_head, self.video_student_head),
            (self.audio_teacher_head, self.audio_student_head),
        )
        for teacher, student in pairs:
            teacher.load_state_dict(student.state_dict())
            teacher.requires_grad_(False)

    def learning_blocks(self) -> list[nn.Module]:
        """Returns the transformer blocks of students and decoders, each once."""
        learning = (self.video_student, self.audio_student, self.video_decoder, self.audio_decoder)
        return _each_once(block for module in learning for block in module.blocks)

    def teaching_blocks(self) -> list[nn.Module]:
        """Returns the teachers' blocks but the last, which is not called as a whole, each once."""
        teachers = (self.video_teacher, self.audio_teacher)
        return _each_once(block for module in teachers for block in module.blocks[:-1])

    def forward(
        self,
        views: Views,
        *,
        teacher_view: TeacherView = "global",
        refinement: Refinement = "mean",
    ) -> XKDOutput:
        """Runs students, decoders and teachers on one batch of views."""
        video_mask = random_mask(views.video_mask_noise, self.num_visible_video)
        audio_mask = random_mask(views.audio_mask_noise, self.num_visible_audio)
        video_tokens, audio_tokens = self._student_tokens(views, video_mask, audio_mask)
        video = self._student_output(
            self.video_student,
            self.video_student_head,
            self.video_decoder,
            views.video_global,
            video_mask,
            video_tokens,
            views.video_locals.shape[1],
        )
        audio = self._student_output(
            self.audio_student,
            self.audio_student_head,
            self.audio_decoder,
            views.audio_global,
            audio_mask,
            audio_tokens,
            views.audio_locals.shape[1],
        )
        with torch.no_grad():
            video_features, audio_features = self._teacher_features(views, teacher_view, refinement)
            video_teacher_logits = self.video_teacher_head(video_features)
            audio_teacher_logits = self.audio_teacher_head(audio_features)
        return XKDOutput(
            video_errors=video.errors,
            audio_errors=audio.errors,
            video_mask=video.mask,
            audio_mask=audio.mask,
            video_student_logits=video.logits,
            audio_student_logits=audio.logits,
            video_teacher_logits=video_teacher_logits,
            audio_teacher_logits=audio_teacher_logits,
            video_student_features=video.features,
            audio_student_features=audio.features,
            video_teacher_features=video_features,
            audio_teacher_features=audio_features,
        )

    def _student_tokens(
        self, views: Views, video_mask: TokenMask, audio_mask: TokenMask
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Encodes masked global and local views; those that share blocks pass them at once."""
        video = [
            EncoderInput(self.video_student, views.video_global, video_mask.keep),
            EncoderInput(self.video_student, views.video_locals.flatten(0, 1)),
        ]
        audio = [
            EncoderInput(self.audio_student, views.audio_global, audio_mask.keep),
            EncoderInput(self.audio_student, views.audio_locals.flatten(0, 1)),
        ]
        if self.video_student.blocks is self.audio_student.blocks:
            tokens = encode_together([*video, *audio])
            return tokens[:2], tokens[2:]
        return encode_together(video), encode_together(audio)

    def _teacher_features(
        self, views: Views, teacher_view: TeacherView, refinement: Refinement
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        video, audio = views.video_locals[0], views.audio_locals[0]
        if teacher_view == "global":
            video, audio = views.video_global[: len(video)], views.audio_global[: len(audio)]
        video_tokens, video_attention = self.video_teacher.tokens_and_attention(video)
        audio_tokens, audio_attention = self.audio_teacher.tokens_and_attention(audio)
        video_agreement = audio_agreement = None
        if refinement == "cross":
            video_logits = self.video_teacher_head(pool_patches(video_tokens))
            audio_logits = self.audio_teacher_head(pool_patches(audio_tokens))
            video_agreement = agreement(self.video_teacher_head(video_tokens[:, 1:]), audio_logits)
            audio_agreement = agreement(self.audio_teacher_head(audio_tokens[:, 1:]), video_logits)
        return (
            self._refine_and_pool(
                video_tokens, video_attention, audio_attention, refinement, video_agreement
            ),
            self._refine_and_pool(
                audio_tokens, audio_attention, video_attention, refinement, audio_agreement
            ),
        )

    def _student_output(
        self,
        encoder: Encoder,
        head: ProjectionHead,
        decoder: Decoder,
        global_views: Float[Tensor, "GB C *size"],
        mask: TokenMask,
        tokens: list[Tensor],
        num_clips: int,
    ) -> _StudentOutput:
        """Reconstructs one modality's masked global views and projects all views.

        `tokens` are those of the masked global views, which serve both the decoder and the head,
        and those of the local views.
        """
        global_tokens, local_tokens = tokens
        predicted = decoder(global_tokens, mask.restore, mask.masked)
        features = pool_patches(global_tokens)
        logits = head(torch.cat([features, pool_patches(local_tokens)]))
        return _StudentOutput(
            self._patch_errors(predicted, mask.masked, global_views, encoder.patch_size),
            mask.hidden,
            logits.unflatten(0, (-1, num_clips)),
            features[:num_clips].detach(),
        )

    @region
    def _patch_errors(
        self,
        predicted: Float[Tensor, "GB N_hidden P"],
        positions: Int[Tensor, "GB N_hidden"],
        global_views: Float[Tensor, "GB C *size"],
        patch_size: tuple[int, ...],
    ) -> Float[Tensor, "GB N_hidden"]:
        return patch_errors(predicted, positions, global_views, patch_size)

    @region
    def _refine_and_pool(
        self,
        tokens: Float[Tensor, "B N_all D"],
        attention: Float[Tensor, "B A N"],
        other_attention: Float[Tensor, "B A N_other"],
        mode: Refinement,
        token_agreement: Float[Tensor, "B N"] | None,
    ) -> Float[Tensor, "B D"]:
        return refine_and_pool(tokens[:, 1:], attention, other_attention, mode, token_agreement)


def build_xkd(model: ModelConfig) -> XKD:
    """Builds all networks with new weights from PyTorch's global generator."""
    video_student, audio_student = _build_encoders(
        model, share_blocks=model.variant != "modality_specific"
    )
    video_teacher, audio_teacher = _build_encoders(
        model, share_blocks=model.variant == "modality_agnostic_teacher_student"
    )
    return XKD(
        video_student=video_student,
        audio_student=audio_student,
        video_student_head=_build_head(model),
        audio_student_head=_build_head(model),
        video_decoder=_build_decoder(model, model.video.num_tokens, model.video.patch_dim),
        audio_decoder=_build_decoder(model, model.audio.num_tokens, model.audio.patch_dim),
        video_teacher=video_teacher,
        audio_teacher=audio_teacher,
        video_teacher_head=_build_head(model),
        audio_teacher_head=_build_head(model),
        num_visible_video=model.video.num_visible,
        num_visible_audio=model.audio.num_visible,
    )


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns all tensors of the `state_dict`, each under its first name only."""
    names: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if names.setdefault(id(tensor), name) == name:
            tensors[name] = tensor.detach()
    return tensors


def load_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies tensors from `model_tensors` into a model of the same shape.

    Raises:
        ValueError: If names or shapes differ; the message lists them.
    """
    own = model_tensors(model)
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & tensors.keys())
        if tensors[name].shape != own[name].shape
    ]
    problems = [
        f"{kind}: {_shorten(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("shape", wrong))
        if names
    ]
    if problems:
        raise ValueError(f"tensors do not fit the model; {'; '.join(problems)}")
    with torch.no_grad():
        for name, tensor in own.items():
            local_part(tensor).copy_(local_part(cut_like(tensors[name], tensor)))


def _each_once(modules: Iterable[nn.Module]) -> list[nn.Module]:
    return list(dict.fromkeys(modules))


def _shorten(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _build_encoders(model: ModelConfig, *, share_blocks: bool) -> tuple[Encoder, Encoder]:
    video = build_encoder(model, "video")
    return video, build_encoder(model, "audio", video.blocks if share_blocks else None)


def _build_head(model: ModelConfig) -> ProjectionHead:
    return ProjectionHead(
        width=model.encoder.width,
        hidden_width=model.head.hidden_width,
        bottleneck_width=model.head.bottleneck_width,
        output_width=model.head.output_width,
        share_hidden_norm=model.head.share_hidden_norm,
        normalize_output=model.head.normalize_output,
    )


def _build_decoder(model: ModelConfig, num_tokens: int, patch_dim: int) -> Decoder:
    return Decoder(
        encoder_width=model.encoder.width,
        width=model.decoder.width,
        depth=model.decoder.depth,
        num_heads=model.decoder.num_heads,
        num_tokens=num_tokens,
        patch_dim=patch_dim,
    )
