"""Axis letters and array types of all signatures.

    B   clips in a batch                 C   channels of a video (3, RGB)
    J   views of one kind                T   frames of a video or of a spectrogram
    N   tokens without the CLS token     H W rows and columns of a frame
    D   width of a token                 M   mel bins of a spectrogram
    K   width of a head's output         S   samples of a waveform
    P   numbers in one patch             A   attention heads
    GB  global views of all clips: the first view of every clip, then the second

Annotations are jaxtyping's. They are checked in tests only, so they cost training nothing.
"""

from jaxtyping import Bool, Float, Int, Int16, UInt8
from torch import Tensor

Scalar = float | Tensor
"""A number of the host, or a tensor of no dimension."""

__all__ = ["Bool", "Float", "Int", "Int16", "Scalar", "Tensor", "UInt8"]
