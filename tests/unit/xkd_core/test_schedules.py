"""Facts about schedules; the published curves are compared in test_golden.py."""

import pytest

from xkd_core.schedules import cosine, linear_by_epoch


def test_cosine_warms_up_from_0_and_ends_at_the_end():
    values = [cosine(s, start=2.0, end=0.5, total_steps=20, warmup_steps=5) for s in range(21)]
    assert values[:5] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert values[5] == 2.0
    assert values[20] == 0.5
    assert values[5:] == sorted(values[5:], reverse=True)


def test_cosine_is_half_way_in_the_middle():
    assert cosine(10, start=0.997, end=1.0, total_steps=20) == pytest.approx(0.9985)


def test_cosine_stays_at_the_end_after_the_last_step():
    assert cosine(25, start=1.0, end=0.0, total_steps=20) == 0.0


def test_a_temperature_reaches_its_end_in_the_last_epoch_of_the_warmup():
    values = [
        linear_by_epoch(e, start=0.04, end=0.06, warmup_epochs=30.0)
        for e in (0.0, 29.0, 30.0, 800.0)
    ]
    assert values == pytest.approx([0.04, 0.06, 0.06, 0.06])


def test_a_temperature_does_not_change_within_an_epoch():
    early = linear_by_epoch(3.0, start=0.04, end=0.06, warmup_epochs=30.0)
    late = linear_by_epoch(3.99, start=0.04, end=0.06, warmup_epochs=30.0)
    assert early == late == pytest.approx(0.04 + 0.02 * 3 / 29)


@pytest.mark.parametrize("epoch", [0.0, 5.0])
def test_without_warmup_a_temperature_is_constant(epoch):
    assert linear_by_epoch(epoch, start=0.2, end=0.1, warmup_epochs=0.0) == 0.1
