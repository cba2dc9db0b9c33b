"""Settings of the method: what the networks, the views, the objective and the optimizer are.

Defaults are the paper's for Kinetics-400 with a ViT-B. Every section is frozen, an unknown key is
an error, and a number that follows from others is a property. Files are read elsewhere.

Paper: XKD, arXiv:2211.13929.
"""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from pydantic import NonNegativeFloat as NonNegative

Share = Annotated[float, Field(ge=0.0, le=1.0)]
ShareBelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
MaskRatio = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveFloats = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]


class Config(BaseModel):
    """Base of every section: unknown keys are errors, numbers are finite, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Range(Config):
    """A closed interval of positive numbers, from which one is drawn."""

    low: PositiveFloat
    high: PositiveFloat

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) must not be above high ({self.high:g})")
        return self


def num_visible(num_tokens: int, mask_ratio: float) -> int:
    """Tokens of `num_tokens` that stay visible (59 of 392 at .85, 112 of 560 at .80)."""
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
    """The picture side: what a clip of frames is and how it becomes tokens (section 3.1)."""

    num_frames: PositiveInt = 32
    """Frames of a clip and of its global view."""
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
    """Whether any tokens are hidden, or the same places at all times, which leaves no earlier or
    later picture of a hidden place to copy from. Tubes are not the paper's but VideoMAE's."""

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
        """Tokens, or tubes of them, that are hidden by themselves."""
        return self.num_tokens // (self.grid[0] if self.masking == "tube" else 1)


class AudioConfig(Config):
    """The sound side: waveform, log-mel spectrogram and tokens (section 3.1)."""

    num_samples: PositiveInt = 64_000
    """Samples of a clip and of its global view."""
    sample_rate: PositiveInt = 16_000
    """Samples per second."""
    local_num_samples: PositiveInt = 16_000
    """Samples of a local view."""
    num_mels: PositiveInt = 80
    """Mel bins of the spectrogram."""
    n_fft: PositiveInt = 1024
    """Samples of the Fourier window (Hann, whole)."""
    hop_length: PositiveInt = 143
    """Samples between two spectrogram frames; 143 gives 448 frames, 28 tokens, for 4 s. The "10 ms"
    of the published code would be 160, which is not what it uses."""
    mean: float = -5.3688107
    """Mean of the log-mel spectrogram that normalisation removes."""
    std: PositiveFloat = 4.410007
    """Standard deviation of the log-mel spectrogram that normalisation divides by."""
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
    depth: PositiveInt
    num_heads: PositiveInt

    @model_validator(mode="after")
    def _divides(self) -> "TransformerConfig":
        _must_divide("width", self.width, "num_heads", self.num_heads)
        return self


class HeadConfig(Config):
    """The projection head: an MLP, L2 normalisation, a weight-normed layer, a bare LayerNorm."""

    hidden_width: PositiveInt = 2048
    bottleneck_width: PositiveInt = 256
    output_width: PositiveInt = 8192
    """Width K of the distributions that are distilled."""
    share_hidden_norm: bool = True
    """One LayerNorm for both hidden layers, as published; False gives each its own."""
    normalize_output: bool = True
    """LayerNorm on the output, without which cross-modal training collapses."""


Variant = Literal[
    "modality_specific", "modality_agnostic_student", "modality_agnostic_teacher_student"
]


class ModelConfig(Config):
    """All networks: two students, two teachers, two decoders."""

    variant: Variant = "modality_specific"
    """Whose blocks video and audio share: nobody's (XKD), the students' (XKD-MAS), or the
    students' and the teachers' (XKD-MATS)."""
    video: VideoConfig = VideoConfig()
    audio: AudioConfig = AudioConfig()
    encoder: TransformerConfig = TransformerConfig(width=768, depth=12, num_heads=12)
    decoder: TransformerConfig = TransformerConfig(width=384, depth=4, num_heads=12)
    head: HeadConfig = HeadConfig()
    position_interpolation: Literal["scale_factor", "exact"] = "scale_factor"
    """How position tables are resized for local views: by the published scale factor
    (n + 0.1) / m, or to the exact size."""

    @model_validator(mode="after")
    def _same_length(self) -> "ModelConfig":
        if not math.isclose(self.video.clip_seconds, self.audio.clip_seconds):
            raise ValueError(
                f"video.num_frames / video.frame_rate ({self.video.clip_seconds:g} s) must equal "
                f"audio.num_samples / audio.sample_rate ({self.audio.clip_seconds:g} s)"
            )
        return self


class ViewsConfig(Config):
    """Random views of a clip; drawn once per view, so a view is consistent in time (section 4)."""

    num_video_globals: PositiveInt = 1
    """Global views of one clip, each with its own mask, to reconstruct and to compare; teachers see
    the first alone, so another view costs a student that sees little of it. The paper's is 1."""
    num_audio_globals: PositiveInt = 1
    num_video_locals: PositiveInt = 1
    num_audio_locals: PositiveInt = 1
    global_crop_area: Range = Range(low=0.2, high=1.0)
    """Area of the crop of the global video view, as a share of the frame."""
    local_crop_area: Range = Range(low=0.08, high=0.4)
    crop_ratio: Range = Range(low=3 / 4, high=4 / 3)
    """Width over height of a crop, drawn log-uniformly."""
    flip_probability: Share = 0.5
    brightness: NonNegative = 0.4
    contrast: NonNegative = 0.4
    saturation: NonNegative = 0.4
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.2
    local_gray_probability: Share = 0.2
    local_blur_probability: Share = 0.5
    local_blur_sigma: Literal["random", "fixed"] = "random"
    """An isotropic sigma from U(0.1, 2), as meant, or the fixed pair (0.1, 2) that the published
    code makes of it: a vertical blur."""
    global_volume: NonNegative = 0.1
    """The global waveform is multiplied by U(1 - v, 1 + v)."""
    local_volume: NonNegative = 0.2
    local_audio_crop: Range = Range(low=0.6, high=1.5)
    """Height and width of the crop of a local spectrogram, as shares of it."""


class TemperatureConfig(Config):
    """A temperature that goes linearly from `start` to `end` over the first epochs."""

    start: PositiveFloat
    end: PositiveFloat
    warmup_epochs: NonNegative = 0.0


class ObjectiveConfig(Config):
    """What is minimised (section 3): reconstruction, domain alignment, distillation."""

    reconstruction_weight: NonNegative = 5.0
    alignment_weight: NonNegative = 1.0
    """Half of it goes to the distance between teachers, as in the paper and the code. They have no
    gradient, so students feel the other half."""
    distillation_weight: NonNegative = 1.0
    divide_by_weights: bool = True
    """The total is divided by the sum of the weights, as in the published code; False leaves the
    paper's sum. Gradients are clipped at an absolute norm, so this is not the learning rate."""
    teacher_view: Literal["global", "first_local"] = "global"
    """What teachers see: the global view (the paper) or the first local one (published code), which
    costs a third less."""
    refinement: Literal["mean", "softmax", "cross", "none"] = "mean"
    """How teacher tokens are weighted before they are pooled and projected: by the published
    cross-modal attention (`mean`, or `softmax` of it), which comes out as each modality's own; by
    that and how far each token agrees with the other modality (`cross`, not the paper's); or not
    at all. The paper draws it after the head, where there are no patches to weight."""
    video_student_temperature: PositiveFloat = 0.1
    """Of the video student's distributions. The published code takes the audio student's for both,
    which are equal there: for parity set both alike."""
    audio_student_temperature: PositiveFloat = 0.1
    video_teacher_temperature: TemperatureConfig = TemperatureConfig(start=0.1, end=0.1)
    """Above the audio teacher's, since that is the sharper one. As published for XKD and XKD-MATS;
    XKD-MAS goes from .09 to .11, and from .04 to .06 for audio, over 30 epochs."""
    audio_teacher_temperature: TemperatureConfig = TemperatureConfig(start=0.07, end=0.07)
    center_momentum: Share = 0.9
    alignment: Literal["mmd", "coral"] = "mmd"
    """How the outputs of the modalities are compared: by maximum mean discrepancy, or by their
    means and covariances."""
    alignment_over_workers: bool = True
    """Alignment compares the clips of all workers; False, as in the published code, those of each
    worker by themselves."""
    mmd_gammas: PositiveFloats = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
    """Inverse squared widths of the Gaussian kernels whose sum MMD uses; the seven are those of the
    published code, the paper's text names none. At the paper's width of outputs the widest sees
    nothing below a cosine of .5, and the others nothing below .95."""
    mmd_bandwidth: Literal["fixed", "median"] = "fixed"
    """Whether gammas are taken as they are, or in units of one over the median squared distance of
    the batch, so that the kernels see rows however far apart they are. Not the paper's."""
    mmd_unit_sphere: bool = False
    """MMD of the directions of rows, whose squared distances lie in 0 to 4. Not the paper's."""
    mmd_unbiased: bool = False
    """Leaves each row out of its own mean; the paper's form rewards alike rows in small batches."""

    @model_validator(mode="after")
    def _something_to_minimise(self) -> "ObjectiveConfig":
        if not self.reconstruction_weight + self.alignment_weight + self.distillation_weight:
            raise ValueError(
                "reconstruction_weight, alignment_weight and distillation_weight must not all be 0"
            )
        return self


class OptimizerConfig(Config):
    """AdamW, its schedules and the teachers' momentum (section 4; times in epochs)."""

    learning_rate: PositiveFloat = 1.0e-4
    """Peak at a global batch of 256; used as it is."""
    final_learning_rate: NonNegative = 0.0
    warmup_epochs: NonNegative = 30.0
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.95)
    eps: PositiveFloat = 1.0e-8
    weight_decay: NonNegative = 0.3
    """For tensors of two or more dimensions."""
    decay_tokens_and_positions: bool = True
    """CLS and mask tokens and position tables decay too, as published."""
    max_grad_norm: PositiveFloat = 0.3
    """Each tensor of a student is clipped to this norm by itself."""
    video_momentum: Share = 0.997
    """Momentum of the video teacher at step 0; it goes to `final_momentum` along a cosine."""
    audio_momentum: Share = 0.997
    final_momentum: Share = 1.0
    """Momentum of both teachers at the last step; below 1 a short run's teachers still catch up
    with what its students learn last."""


class MethodConfig(Config):
    """The whole method: networks, views, objective, optimizer."""

    model: ModelConfig = ModelConfig()
    views: ViewsConfig = ViewsConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
