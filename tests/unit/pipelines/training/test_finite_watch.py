"""The first step that is not finite is named, however late somebody looks."""

import torch

from pipelines.training.finite_watch import FiniteWatch


def metrics(total: float, other: float = 1.0, norm: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "loss/total": torch.tensor(total),
        "loss/alignment": torch.tensor(other, dtype=torch.float64),
        "grad_norm/total": torch.tensor(norm),
        "schedule/epoch": torch.tensor(float("nan")),
    }


def test_finite_steps_give_nothing():
    watch = FiniteWatch()
    assert watch.first() is None
    watch.see(0, metrics(1.0))
    assert watch.first() is None


def test_the_first_bad_step_is_named_with_its_terms_alone():
    watch = FiniteWatch()
    watch.see(4, metrics(1.0))
    watch.see(5, metrics(float("nan"), norm=float("inf")))
    for step in range(6, 9):
        watch.see(step, metrics(float("nan"), float("nan"), float("nan")))
    assert watch.first() == (5, ["loss/total", "grad_norm/total"])
