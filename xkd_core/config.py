"""Settings of the method: networks, views, objective, optimizer.

Defaults are the paper's for Kinetics-400 with a ViT-B. Sections are frozen and refuse unknown keys.
Numbers that follow from others are properties. This module reads no files.

Paper: XKD, arXiv:2211.13929.
"""

import math
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic import NonNegativeFloat as NonNegative

Share = Annotated[float, Field(ge=0.0, le=1.0)]
ShareBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
MaskRatio = Annotated[float, Field(gt=0.0, lt=1.0)]
ShareAboveZero = Annotated[float, Field(gt=0.0, le=1.0)]
PositiveFloats = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]


class Config(BaseModel):
    """Base of every section: refuses unknown keys and infinite numbers, and is frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Range(Config):
    """A closed interval of positive numbers to draw from."""

    low: PositiveFloat
    """Smallest value drawn, above 0."""
    high: PositiveFloat
    """Largest value drawn, at least `low`."""

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) must not be above high ({self.high:g})")
        return self


def num_visible(num_tokens: int, mask_ratio: float) -> int:
    """Number of tokens that stay visible: 59 of 392 at 0.85, 112 of 560 at 0.80."""
    return round(num_tokens * (1.0 - mask_ratio))


def _must_divide(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        raise ValueError(f"{name} ({value}) must be a multiple of {divisor_name} ({divisor})")


def _must_leave_visible(num_tokens: int, mask_ratio: float) -> None:
    visible = num_visible(num_tokens, mask_ratio)
    if not 1 <= visible < num_tokens:
        raise ValueError(
            f"mask_ratio must leave 1 to {num_tokens - 1} of {num_tokens} tokens visible, "
            f"but {mask_ratio:g} leaves {visible}"
        )


class VideoConfig(Config):
    """Frames of a clip and how they become tokens (section 3.1)."""

    num_frames: PositiveInt = 32
    """Frames of a clip, all of which its global view shows."""
    frame_rate: PositiveFloat = 8.0
    """Frames per second."""
    size: PositiveInt = 112
    """Height and width of the global view in pixels."""
    local_num_frames: PositiveInt = 8
    """Frames of a local view."""
    local_size: PositiveInt = 96
    """Height and width of a local view in pixels."""
    tubelet_size: PositiveInt = 4
    """Frames covered by one token."""
    patch_size: PositiveInt = 16
    """Height and width in pixels covered by one token."""
    mask_ratio: MaskRatio = 0.85
    """Share of the global view's tokens that the student does not see."""
    masking: Literal["random", "tube"] = "random"
    """`random` hides tokens independently, as in the paper. `tube` (VideoMAE) hides the same patch
    at all times, so that it cannot be copied from earlier or later frames."""

    @model_validator(mode="after")
    def _divides(self) -> "VideoConfig":
        _must_divide("num_frames", self.num_frames, "tubelet_size", self.tubelet_size)
        _must_divide("local_num_frames", self.local_num_frames, "tubelet_size", self.tubelet_size)
        _must_divide("size", self.size, "patch_size", self.patch_size)
        _must_divide("local_size", self.local_size, "patch_size", self.patch_size)
        if self.local_num_frames > self.num_frames:
            raise ValueError(
                f"local_num_frames ({self.local_num_frames}) must not be above "
                f"num_frames ({self.num_frames})"
            )
        _must_leave_visible(self._num_maskable, self.mask_ratio)
        return self

    @property
    def clip_seconds(self) -> float:
        """Length of a clip in seconds."""
        return self.num_frames / self.frame_rate

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens of the global view along time, height and width."""
        side = self.size // self.patch_size
        return self.num_frames // self.tubelet_size, side, side

    @property
    def local_grid(self) -> tuple[int, int, int]:
        """Tokens of a local view along time, height and width."""
        side = self.local_size // self.patch_size
        return self.local_num_frames // self.tubelet_size, side, side

    @property
    def num_tokens(self) -> int:
        """Tokens of the global view without CLS."""
        return math.prod(self.grid)

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch."""
        return self.tubelet_size * self.patch_size**2 * 3

    @property
    def num_visible(self) -> int:
        """Tokens of the global view that the student sees."""
        tokens_each = self.num_tokens // self._num_maskable
        return tokens_each * num_visible(self._num_maskable, self.mask_ratio)

    @property
    def _num_maskable(self) -> int:
        """Units of masking: tokens, or tubes of tokens."""
        return self.num_tokens // (self.grid[0] if self.masking == "tube" else 1)


class AudioConfig(Config):
    """Sound of a clip: waveform, log-mel spectrogram and tokens (section 3.1)."""

    num_samples: PositiveInt = 64_000
    """Samples of a clip, all of which its global view covers."""
    sample_rate: PositiveInt = 16_000
    """Samples per second."""
    local_num_samples: PositiveInt = 16_000
    """Samples of a local view."""
    num_mels: PositiveInt = 80
    """Mel bins of the spectrogram."""
    n_fft: PositiveInt = 1024
    """Samples of the Fourier transform and of its Hann window."""
    hop_length: PositiveInt = 143
    """Samples between two spectrogram frames. 143 (8.9 ms) gives 448 frames, 28 tokens, in 4 s; the
    published code uses it too, although it says 10 ms."""
    mean: float = -5.3688107
    """Mean of log-mel spectrograms, which normalization subtracts."""
    std: PositiveFloat = 4.410007
    """Standard deviation of log-mel spectrograms, by which normalization divides."""
    patch_bins: PositiveInt = 4
    """Mel bins covered by one token."""
    patch_frames: PositiveInt = 16
    """Spectrogram frames covered by one token."""
    mask_ratio: MaskRatio = 0.80
    """Share of the global view's tokens that the student does not see."""

    @model_validator(mode="after")
    def _divides(self) -> "AudioConfig":
        _must_divide("num_mels", self.num_mels, "patch_bins", self.patch_bins)
        _must_divide(
            "num_samples // hop_length + 1", self.num_frames, "patch_frames", self.patch_frames
        )
        _must_divide(
            "local_num_samples // hop_length + 1",
            self.local_num_frames,
            "patch_frames",
            self.patch_frames,
        )
        if self.local_num_samples > self.num_samples:
            raise ValueError(
                f"local_num_samples ({self.local_num_samples}) must not be above "
                f"num_samples ({self.num_samples})"
            )
        if self.n_fft // 2 >= self.local_num_samples:
            raise ValueError(
                f"n_fft ({self.n_fft}) must be below twice local_num_samples "
                f"({self.local_num_samples}), or the reflected edge is longer than the sound"
            )
        _must_leave_visible(self.num_tokens, self.mask_ratio)
        return self

    @property
    def clip_seconds(self) -> float:
        """Length of a clip in seconds."""
        return self.num_samples / self.sample_rate

    @property
    def num_frames(self) -> int:
        """Spectrogram frames of the global view."""
        return self.num_samples // self.hop_length + 1

    @property
    def local_num_frames(self) -> int:
        """Spectrogram frames of a local view."""
        return self.local_num_samples // self.hop_length + 1

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of the global view along frequency and time."""
        return self.num_mels // self.patch_bins, self.num_frames // self.patch_frames

    @property
    def local_grid(self) -> tuple[int, int]:
        """Tokens of a local view along frequency and time."""
        return self.num_mels // self.patch_bins, self.local_num_frames // self.patch_frames

    @property
    def num_tokens(self) -> int:
        """Tokens of the global view without CLS."""
        return math.prod(self.grid)

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch."""
        return self.patch_bins * self.patch_frames

    @property
    def num_visible(self) -> int:
        """Tokens of the global view that the student sees."""
        return num_visible(self.num_tokens, self.mask_ratio)


class TransformerConfig(Config):
    """A stack of pre-norm transformer blocks."""

    width: PositiveInt
    """Numbers in a token between blocks; a multiple of `num_heads`. The MLP is 4 times as wide."""
    depth: PositiveInt
    """Number of blocks."""
    num_heads: PositiveInt
    """Attention heads of a block; each has `width / num_heads` of the numbers."""

    @model_validator(mode="after")
    def _divides(self) -> "TransformerConfig":
        _must_divide("width", self.width, "num_heads", self.num_heads)
        return self


class HeadConfig(Config):
    """Projection head: MLP, L2 normalization, weight-normed layer, LayerNorm without parameters."""

    hidden_width: PositiveInt = 2048
    """Width of the two hidden layers of the MLP."""
    bottleneck_width: PositiveInt = 256
    """Width of the layer that is normalized to unit length before the weight-normed layer."""
    output_width: PositiveInt = 8192
    """Width K of the logits that are aligned and distilled."""
    share_hidden_norm: bool = True
    """Both hidden layers share one LayerNorm, as published."""
    normalize_output: bool = True
    """Applies the LayerNorm to the output. Cross-modal training collapses without it."""


Variant = Literal[
    "modality_specific", "modality_agnostic_student", "modality_agnostic_teacher_student"
]


class ModelConfig(Config):
    """All networks: two students, two teachers, their heads, two decoders."""

    variant: Variant = "modality_specific"
    """Which transformer blocks video and audio share: none (XKD), the students' (XKD-MAS), or the
    students' and the teachers' (XKD-MATS)."""
    video: VideoConfig = VideoConfig()
    """Video clips and their tokens."""
    audio: AudioConfig = AudioConfig()
    """Audio clips and their tokens."""
    encoder: TransformerConfig = TransformerConfig(width=768, depth=12, num_heads=12)
    """Encoder of each student and teacher; the default is a ViT-B, as in the paper."""
    decoder: TransformerConfig = TransformerConfig(width=384, depth=4, num_heads=12)
    """Decoder that reconstructs the masked patches of each modality."""
    head: HeadConfig = HeadConfig()
    """Projection head of each student and teacher."""
    position_interpolation: Literal["scale_factor", "exact"] = "scale_factor"
    """How position tables are resized for local views: by a factor of (n + 0.1) / m, as published,
    or to the exact size."""

    @model_validator(mode="after")
    def _same_length(self) -> "ModelConfig":
        if not math.isclose(self.video.clip_seconds, self.audio.clip_seconds):
            raise ValueError(
                f"video.num_frames / video.frame_rate ({self.video.clip_seconds:g} s) must equal "
                f"audio.num_samples / audio.sample_rate ({self.audio.clip_seconds:g} s)"
            )
        return self


class ViewsConfig(Config):
    """Random views of a clip. What is drawn for a view holds for all its frames (section 4)."""

    num_video_globals: PositiveInt = 1
    """Global views of a clip, each with its own mask; students reconstruct and project all of them.
    Teachers see the first only, so a further view costs little. The paper has 1."""
    num_audio_globals: PositiveInt = 1
    """Global views of the sound of a clip; see `num_video_globals`."""
    num_video_locals: PositiveInt = 1
    """Local views of the frames of a clip, which students project unmasked. 1 for XKD, 3 for
    XKD-MAS and XKD-MATS."""
    num_audio_locals: PositiveInt = 1
    """Local views of the sound of a clip. 1 for all variants."""
    global_crop_area: Range = Range(low=0.2, high=1.0)
    """Area of the crop of a global view, as a share of the frame."""
    local_crop_area: Range = Range(low=0.08, high=0.4)
    """Area of the crop of a local view, as a share of the frame."""
    crop_ratio: Range = Range(low=3 / 4, high=4 / 3)
    """Width over height of a crop, drawn log-uniformly."""
    flip_probability: Share = 0.5
    """Probability that a view is mirrored horizontally."""
    brightness: NonNegative = 0.4
    """b: multiplies brightness by a factor from U(1 - b, 1 + b), at least 0."""
    contrast: NonNegative = 0.4
    """c: multiplies contrast by a factor from U(1 - c, 1 + c), at least 0."""
    saturation: NonNegative = 0.4
    """s: multiplies saturation by a factor from U(1 - s, 1 + s), at least 0."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.2
    """h: rotates hue by a share of the color circle from U(-h, h)."""
    local_gray_probability: Share = 0.2
    """Probability that a local view is gray."""
    local_blur_probability: Share = 0.5
    """Probability that a local view is blurred."""
    local_blur_sigma: Literal["random", "fixed"] = "random"
    """`random` draws one sigma for both axes from U(0.1, 2), as the paper means. `fixed` is 2
    vertically and 0.1 horizontally, as in the published code."""
    global_volume: NonNegative = 0.1
    """v: multiplies the waveform of a global view by a factor from U(1 - v, 1 + v)."""
    local_volume: NonNegative = 0.2
    """Same as `global_volume`, for local views."""
    local_audio_crop: Range = Range(low=0.6, high=1.5)
    """Height and width of the crop of a local view, as shares of its spectrogram."""


class TemperatureConfig(Config):
    """A temperature that changes linearly from `start` to `end` over the first epochs."""

    start: PositiveFloat
    """Temperature at the first step."""
    end: PositiveFloat
    """Temperature after `warmup_epochs`."""
    warmup_epochs: NonNegative = 0.0
    """Length of the change, epochs. 0: `end` from the first step on."""


class ObjectiveConfig(Config):
    """The loss (section 3): reconstruction, domain alignment, distillation."""

    reconstruction_weight: NonNegative = 5.0
    """Weight of the mean of the video and audio reconstruction losses (section 3)."""
    alignment_weight: NonNegative = 1.0
    """Weight of the mean of two distances: between students and between teachers. Only the first
    has a gradient, so its effective weight is half of this, as in the paper."""
    distillation_weight: NonNegative = 1.0
    """Weight of the distillation losses in both directions (section 3)."""
    divide_by_weights: bool = True
    """Divides the total by the sum of the weights, as the published code does; the paper has the
    sum. This matters because gradients are clipped at an absolute norm."""
    teacher: Literal["moving", "frozen"] = "moving"
    """`moving`: teachers are moving averages of their students, as in the paper. `frozen`: teachers
    stay what they were before the first step, such as the encoders that `init` names."""
    teacher_view: Literal["global", "first_local"] = "global"
    """View that teachers see: the global view (paper) or the first local view (published code),
    which saves a third of the computation."""
    refinement: Literal["mean", "softmax", "cross", "none"] = "mean"
    """Weights of a teacher's tokens before pooling. `mean` and `softmax` use the published
    cross-modal attention, which reduces to each modality's own attention. `cross` multiplies it by
    each token's agreement with the other modality (not in the paper). `none` weighs all equally."""
    video_student_temperature: PositiveFloat = 0.1
    """Temperature of the video student's distributions. The published code uses the audio student's
    for both, with equal values."""
    audio_student_temperature: PositiveFloat = 0.1
    """Temperature of the audio student's distributions."""
    video_teacher_temperature: TemperatureConfig = TemperatureConfig(start=0.1, end=0.1)
    """Higher than the audio teacher's, which is sharper. Published for XKD and XKD-MATS; XKD-MAS
    has 0.09 to 0.11 for video and 0.04 to 0.06 for audio, over 30 epochs."""
    audio_teacher_temperature: TemperatureConfig = TemperatureConfig(start=0.07, end=0.07)
    """Temperature of the audio teacher's distributions; see `video_teacher_temperature`."""
    center_momentum: Share = 0.9
    """Momentum of the center that is subtracted from a teacher's logits (DINO): the share of
    the old center that each step keeps."""
    alignment: Literal["mmd", "coral"] = "mmd"
    """Distance between the outputs of the modalities: maximum mean discrepancy, or the difference
    of their means and covariances."""
    alignment_over_workers: bool = True
    """Compares the clips of all workers. The published code compares those of each worker."""
    mmd_gammas: PositiveFloats = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
    """Inverse squared widths of MMD's Gaussian kernels, as in the published code. At the default
    `output_width` the widest kernel vanishes below a cosine of 0.5, the others below 0.95."""
    mmd_bandwidth: Literal["fixed", "median"] = "fixed"
    """`fixed` uses gammas as they are (paper). `median` divides them by the median squared distance
    of the batch, so that kernels respond at any distance."""
    mmd_unit_sphere: bool = False
    """MMD of rows of unit length, with squared distances of 0 to 4. Not in the paper."""
    mmd_unbiased: bool = False
    """MMD without pairs of a row with itself, which reward similar rows in small batches."""

    @model_validator(mode="after")
    def _something_to_minimize(self) -> "ObjectiveConfig":
        if not self.reconstruction_weight + self.alignment_weight + self.distillation_weight:
            raise ValueError(
                "reconstruction_weight, alignment_weight and distillation_weight must not all be 0"
            )
        return self


class OptimizerConfig(Config):
    """AdamW, its schedules, and the momentum of the teachers (section 4)."""

    learning_rate: PositiveFloat = 1.0e-4
    """Peak after warm-up. The default is for a global batch of 256 and is not scaled."""
    final_learning_rate: NonNegative = 0.0
    """Learning rate at the last step; a cosine leads to it from the peak."""
    warmup_epochs: NonNegative = 30.0
    """Epochs in which the learning rate rises linearly to its peak."""
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.95)
    """AdamW's decay rates of the running means of the gradient and of its square."""
    eps: PositiveFloat = 1.0e-8
    """Added to AdamW's denominator, so that it is never 0."""
    weight_decay: NonNegative = 0.3
    """Applies to tensors of two or more dimensions."""
    decay_tokens_and_positions: bool = True
    """Weight decay also applies to CLS and mask tokens and position tables, as published."""
    layer_decay: ShareAboveZero = 1.0
    """Multiplies the learning rate of a student's blocks by `layer_decay^(depth - i)`, i from 0,
    and of what comes before them (patch projection, CLS, positions) by `layer_decay^(depth + 1)`.
    Final norm, heads and decoders have the full rate. 1: the same rate everywhere (paper)."""
    frozen_video_blocks: NonNegativeInt = 0
    """First blocks of the video student that do not learn, with patch projection, CLS and positions
    before them. For encoders that begin from weights."""
    frozen_audio_blocks: NonNegativeInt = 0
    """First blocks of the audio student that do not learn; see `frozen_video_blocks`. Where both
    students share blocks, the larger number counts."""
    max_grad_norm: PositiveFloat = 0.3
    """Norm to which the gradient of each tensor of the students is clipped separately."""
    video_momentum: Share = 0.997
    """Momentum of the video teacher at step 0; follows a cosine to `final_momentum`."""
    audio_momentum: Share = 0.997
    """Momentum of the audio teacher at step 0; see `video_momentum`."""
    final_momentum: Share = 1.0
    """Momentum of both teachers at the last step. Below 1, teachers of a short run still follow
    what students learn last."""


class MethodConfig(Config):
    """The whole method: networks, views, objective, optimizer."""

    model: ModelConfig = ModelConfig()
    """Networks and the clips they take."""
    views: ViewsConfig = ViewsConfig()
    """Random views of a clip."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """Loss terms, their weights and temperatures."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW, its schedules, and the momentum of the teachers."""

    @model_validator(mode="after")
    def _blocks_exist(self) -> "MethodConfig":
        depth = self.model.encoder.depth
        for name in ("frozen_video_blocks", "frozen_audio_blocks"):
            if (frozen := getattr(self.optimizer, name)) > depth:
                raise ValueError(
                    f"optimizer.{name} ({frozen}) must not be above model.encoder.depth ({depth})"
                )
        return self
