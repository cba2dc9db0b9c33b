"""Teachers follow their students: theta_teacher <- m theta_teacher + (1 - m) theta_student.

A teacher is an encoder and a head. Blocks that both teachers share are updated twice, first for
video and then for audio, so their effective momentum is the product of both, as published.

Paper: XKD, arXiv:2211.13929; Mean Teacher, arXiv:1703.01780.
"""

import torch
from torch import nn

from xkd_core.shapes import Scalar, Tensor
from xkd_core.sharding import local_part
from xkd_core.xkd import XKD


def update_teachers(model: XKD, video_momentum: Scalar, audio_momentum: Scalar) -> None:
    """Moves both teachers toward their students."""
    _follow(
        [model.video_teacher, model.video_teacher_head],
        [model.video_student, model.video_student_head],
        video_momentum,
    )
    _follow(
        [model.audio_teacher, model.audio_teacher_head],
        [model.audio_student, model.audio_student_head],
        audio_momentum,
    )


def _follow(teachers: list[nn.Module], students: list[nn.Module], momentum: Scalar) -> None:
    """Updates all parameters in one multi-tensor operation."""
    with torch.no_grad():
        teacher_tensors = _tensors(teachers)
        student_tensors = _tensors(students)
        assert len(teacher_tensors) == len(student_tensors)
        weight = 1.0 - momentum
        if isinstance(weight, Tensor):
            weights = [weight.to(teacher_tensors[0])] * len(teacher_tensors)
            torch._foreach_lerp_(teacher_tensors, student_tensors, weights)
        else:
            torch._foreach_lerp_(teacher_tensors, student_tensors, weight)


def _tensors(modules: list[nn.Module]) -> list[Tensor]:
    return [local_part(parameter) for module in modules for parameter in module.parameters()]
