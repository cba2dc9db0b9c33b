"""Where a step's time goes: each part by itself, forward and backward; for `train_step.py`."""

import argparse
import statistics
from collections.abc import Callable

import torch
from step_bench import DTYPES, MOMENTUM, Bench, timed

from xkd_core.ema import update_teachers
from xkd_core.encoders import pool_patches
from xkd_core.losses import losses, teacher_temperatures
from xkd_core.masking import random_mask
from xkd_core.optim import clip_each_gradient, clipped_parameters


def measure_parts(bench: Bench, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median seconds of each part of our step for each dtype, backward included."""
    table = {}
    for name in options.dtypes:
        rows: dict[str, list[float]] = {}
        for repeat in range(options.repeats + 1):
            for part, work in parts_of_a_step(bench, DTYPES[name]).items():
                spent = timed(bench, work)
                if repeat:
                    rows.setdefault(part, []).append(spent)
        table[name] = {part: statistics.median(values) for part, values in rows.items()}
    width = max(len(part) for part in table[options.dtypes[0]])
    for part in table[options.dtypes[0]]:
        print(f"{part:{width}} " + "  ".join(f"{n} {table[n][part]:8.4f} s" for n in table))
    sums = "  ".join(f"{name} {sum(rows.values()):8.4f} s" for name, rows in table.items())
    print(f"{'sum':{width}} {sums}")
    return table


def parts_of_a_step(bench: Bench, dtype: torch.dtype | None) -> dict[str, Callable[[], object]]:
    """Each part by itself, eager; what learns is run forward and backward."""
    model, views = bench.model, bench.views

    def cast() -> torch.autocast:
        return torch.autocast(bench.device, dtype=dtype, enabled=dtype is not None)

    def learn(forward: Callable[[], torch.Tensor]) -> None:
        with cast():
            output = forward()
        output.float().mean().backward()

    def watch(forward: Callable[[], object]) -> None:
        with cast(), torch.no_grad():
            forward()

    parts: dict[str, Callable[[], object]] = {"views and log-mel": bench.make_views}
    for modality, clip, local, noise in (
        ("video", views.video_global, views.video_locals, views.video_mask_noise),
        ("audio", views.audio_global, views.audio_locals, views.audio_mask_noise),
    ):
        student, teacher, decoder, head = (
            model.get_submodule(f"{modality}_{part}")
            for part in ("student", "teacher", "decoder", "student_head")
        )
        mask = random_mask(noise, getattr(model, f"num_visible_{modality}"))
        with torch.no_grad(), cast():
            tokens = student(clip, mask.keep)
        features = pool_patches(tokens).repeat(1 + len(local), 1)
        parts |= {
            f"{modality} teacher": lambda t=teacher, c=clip: watch(
                lambda: t.tokens_and_attention(c)
            ),
            f"{modality} student, global": lambda s=student, c=clip, m=mask: learn(
                lambda: s(c, m.keep)
            ),
            f"{modality} student, local": lambda s=student, c=local: learn(
                lambda: s(c.flatten(0, 1))
            ),
            f"{modality} decoder": lambda d=decoder, t=tokens, m=mask: learn(
                lambda: d(t.clone().requires_grad_(), m.restore)
            ),
            f"{modality} head": lambda h=head, f=features: learn(lambda: h(f)),
        }
    return parts | closing_parts(bench, cast)


def closing_parts(
    bench: Bench, cast: Callable[[], torch.autocast]
) -> dict[str, Callable[[], object]]:
    """Losses, and what happens to parameters once their gradients are there."""
    model, state = bench.model, bench.state
    with torch.no_grad(), cast():
        output = model(bench.views)
    leaves = {
        name: value.detach().clone().requires_grad_() if value.is_floating_point() else value
        for name, value in output._asdict().items()
    }
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)

    def loss() -> None:
        total, _, _ = losses(
            type(output)(**leaves),
            state.centers,
            bench.config.objective,
            teacher_temperatures(bench.config.objective, 0.0),
        )
        total.backward()

    return {
        "losses": loss,
        "clipping": lambda: clip_each_gradient(clipped_parameters(model), 0.3),
        "optimizer": state.optimizer.step,
        "teachers' averages": lambda: update_teachers(model, MOMENTUM, MOMENTUM),
    }
