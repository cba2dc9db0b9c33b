"""Measures of health say what their formula says, and tell collapse from health."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from xkd_core.config import ObjectiveConfig, TemperatureConfig
from xkd_core.health import (
    CollapseWatch,
    collapse_signs,
    distribution_entropy,
    effective_rank,
    feature_std,
    mean_cosine_between,
    mean_cosine_within,
    measure_health,
    mmd_without_constant,
    target_information,
    target_kl,
)
from xkd_core.losses import Centers, distillation_loss, losses, teacher_temperatures
from xkd_core.xkd import XKDOutput

OBJECTIVE = ObjectiveConfig(
    video_teacher_temperature=TemperatureConfig(start=0.5, end=1.0, warmup_epochs=10),
    audio_teacher_temperature=TemperatureConfig(start=0.7, end=0.7),
    video_student_temperature=0.3,
    audio_student_temperature=0.4,
)


def make_output(num_clips, *, alike=False):
    def logits(*shape):
        drawn = torch.randn(*shape, 16)
        return F.layer_norm(drawn[..., :1, :].expand_as(drawn) if alike else drawn, (16,))

    features = torch.randn(4, num_clips, 12)
    return XKDOutput(
        video_errors=torch.rand(num_clips, 6),
        audio_errors=torch.rand(num_clips, 8),
        video_mask=torch.ones(num_clips, 6, dtype=torch.bool),
        audio_mask=torch.ones(num_clips, 8, dtype=torch.bool),
        video_student_logits=logits(2, num_clips).requires_grad_(),
        audio_student_logits=logits(3, num_clips).requires_grad_(),
        video_teacher_logits=logits(num_clips),
        audio_teacher_logits=logits(num_clips),
        video_student_features=features[0],
        audio_student_features=features[1],
        video_teacher_features=features[2][:1].expand_as(features[2]) if alike else features[2],
        audio_teacher_features=features[3][:1].expand_as(features[3]) if alike else features[3],
    )


CENTERS = Centers(0.1 * torch.ones(16), torch.zeros(16))


def test_measures_and_losses_agree():
    output = make_output(8)
    health = measure_health(output, CENTERS, OBJECTIVE, epoch=5.0)
    _, terms, _ = losses(output, CENTERS, OBJECTIVE, teacher_temperatures(OBJECTIVE, 5.0))
    for modality, direction in (("video", "video_to_audio"), ("audio", "audio_to_video")):
        cross_entropy = (
            health[f"health/{modality}/target_entropy"] + health[f"health/{modality}/target_kl"]
        )
        torch.testing.assert_close(cross_entropy, terms[f"loss/distillation/{direction}"])
    constant = 7 / 16 + 7 / 24
    torch.testing.assert_close(health["health/mmd"], terms["loss/alignment/student"] - constant)
    torch.testing.assert_close(health["health/video/center_norm"], torch.tensor(0.4))


def test_every_measure_is_a_detached_finite_number():
    for num_clips in (1, 2, 8):
        for alike in (False, True):
            health = measure_health(make_output(num_clips, alike=alike), CENTERS, OBJECTIVE, 0.0)
            for name, value in health.items():
                assert value.ndim == 0, name
                assert not value.requires_grad, name
                assert value.isfinite(), name


def test_collapsed_networks_look_collapsed():
    healthy = measure_health(make_output(8), CENTERS, OBJECTIVE, 0.0)
    collapsed = measure_health(make_output(8, alike=True), CENTERS, OBJECTIVE, 0.0)
    for modality in ("video", "audio"):
        assert healthy[f"health/{modality}/effective_rank"] > 4
        assert collapsed[f"health/{modality}/effective_rank"] < 1.01
        assert healthy[f"health/{modality}/feature_std"] > 0.7
        assert collapsed[f"health/{modality}/feature_std"] < 1e-3
        assert healthy[f"health/{modality}/cosine_within"] < 0.5
        assert collapsed[f"health/{modality}/cosine_within"] > 0.999


def test_what_is_not_finite_does_not_stop_the_measuring():
    output = make_output(4)
    output = output._replace(video_teacher_features=output.video_teacher_features * math.nan)
    health = measure_health(output, CENTERS, OBJECTIVE, 0.0)
    assert not health["health/video/feature_std"].isfinite()
    assert health["health/audio/feature_std"].isfinite()


@given(st.integers(1, 12), st.integers(12, 20))
def test_effective_rank_counts_equally_used_directions(rank, dim):
    features = torch.eye(dim)[torch.arange(24) % rank]
    # Uneven counts would use some directions more.
    features = features[: 24 // rank * rank]
    assert float(effective_rank(features)) == pytest.approx(rank, rel=1e-4)


def test_effective_rank_is_its_formula():
    features = torch.randn(9, 5)
    values = np.linalg.svd(features.numpy(), compute_uv=False)
    shares = values / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert float(effective_rank(features)) == pytest.approx(expected, rel=1e-5)


def test_feature_std_is_one_on_the_sphere_and_ignores_scale():
    features = torch.randn(4000, 32)
    assert float(feature_std(features)) == pytest.approx(1.0, abs=0.02)
    torch.testing.assert_close(feature_std(5.0 * features), feature_std(features))


@given(st.integers(2, 30), st.floats(0.05, 2.0))
def test_entropy_lies_between_certain_and_empty(num_outputs, temperature):
    empty = distribution_entropy(torch.zeros(3, num_outputs), temperature)
    assert float(empty) == pytest.approx(math.log(num_outputs), rel=1e-4)
    certain = distribution_entropy(1000.0 * torch.eye(num_outputs), temperature)
    assert float(certain) == pytest.approx(0.0, abs=1e-5)


def test_kl_is_the_distillation_loss_less_the_entropy():
    teacher, students, center = torch.randn(5, 9), torch.randn(2, 5, 9), torch.randn(9)
    temperatures = {"teacher_temperature": 0.2, "student_temperature": 0.3}
    kl = target_kl(teacher - center, students, **temperatures)
    loss = distillation_loss(students, teacher, center, **temperatures)
    torch.testing.assert_close(kl, loss - distribution_entropy(teacher - center, 0.2))
    same = target_kl(teacher, teacher[None], teacher_temperature=1.0, student_temperature=1.0)
    assert float(same) == pytest.approx(0.0, abs=1e-6)


def test_cosines_are_means_over_pairs():
    a, b = torch.randn(5, 7), torch.randn(4, 7)
    cosine = F.cosine_similarity(a.unsqueeze(1), a.unsqueeze(0), dim=-1)
    expected = cosine[~torch.eye(5, dtype=torch.bool)].mean()
    torch.testing.assert_close(mean_cosine_within(a), expected)
    expected = F.cosine_similarity(a.unsqueeze(1), b.unsqueeze(0), dim=-1).mean()
    torch.testing.assert_close(mean_cosine_between(a, b), expected)


def test_mmd_of_rows_that_are_far_from_all_others_is_zero():
    far = 1000.0 * torch.eye(6)
    assert float(mmd_without_constant(far[:3], far[3:], ObjectiveConfig())) == pytest.approx(
        0.0, abs=1e-6
    )


def test_information_is_0_for_equal_targets_and_1_for_certain_different_ones():
    same = torch.randn(1, 16).expand(8, 16)
    for temperature in (1e-3, 0.1, 10.0):
        assert target_information(same, temperature).item() == pytest.approx(0.0, abs=1e-5)
    certain = 100.0 * torch.eye(8, 16)
    assert target_information(certain, 0.1).item() == pytest.approx(1.0)
    assert target_information(certain[:1], 0.1).item() == pytest.approx(0.0, abs=1e-6)
    # Two answers for eight clips: log 2 of log 8.
    assert target_information(certain[[0, 1] * 4], 0.1).item() == pytest.approx(1 / 3)


HEALTHY = {
    "target_information": 0.5,
    "target_entropy": 1.0,
    "cosine_within": 0.8,
    "effective_rank": 7.0,
}


def record(**changes):
    values = {"video": HEALTHY, "audio": HEALTHY | changes}
    return {f"health/{m}/{name}": v for m in values for name, v in values[m].items()}


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        (
            {"target_information": 0.02, "target_entropy": 5.94},
            "audio targets hardly differ between clips (information 0.02 < 0.15, entropy 5.9)",
        ),
        ({"cosine_within": 0.9912}, "audio outputs are alike for all clips (cosine 0.991 > 0.98)"),
        ({"effective_rank": 1.02}, "audio features are alike for all clips (rank 1.02 < 1.5)"),
    ],
)
def test_each_sign_names_its_modality_and_figures(change, sign):
    assert collapse_signs(record()) == []
    assert collapse_signs(record(**change)) == [sign]


def test_a_batch_of_few_clips_is_not_judged():
    for num_clips, is_judged in ((3, False), (4, True)):
        health = measure_health(make_output(num_clips, alike=True), CENTERS, OBJECTIVE, 0.0)
        signs = collapse_signs({name: value.item() for name, value in health.items()})
        assert bool(signs) == is_judged
    healthy = measure_health(make_output(4), CENTERS, OBJECTIVE, 0.0)
    assert not collapse_signs({name: value.item() for name, value in healthy.items()})


def test_the_watch_judges_three_records_and_tells_once():
    watch = CollapseWatch()
    collapsed = record(target_information=0.0) | {"loss/total": 1.0}
    assert [watch.see(collapsed) for _ in range(4)] == [False, False, True, False]
    assert watch.signs
    # One bad record among three is not a collapse.
    assert not any(watch.see(record()) for _ in range(3))
    assert not watch.signs
    assert not watch.see(collapsed)
    assert not watch.signs


def test_a_watch_that_goes_on_from_another_says_what_that_one_would():
    records = [record()] * 5 + [record(target_information=0.0)] * 4
    whole = CollapseWatch()
    expected = [(whole.see(each), whole.signs) for each in records]
    for stop in range(len(records)):
        first = CollapseWatch()
        for each in records[:stop]:
            first.see(each)
        second = CollapseWatch(first.records)
        assert second.signs == first.signs
        assert [(second.see(each), second.signs) for each in records[stop:]] == expected[stop:]
