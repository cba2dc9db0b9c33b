"""When a run is called slow."""

import pytest

from pipelines.training.throughput import MIN_TIMES, Clock, SlowdownWatch


def lap(pace: float, wait: float = 0.0, seconds: float = 1.0) -> dict[str, float]:
    return {
        "time/lap_seconds": seconds,
        "time/clips_per_second": pace,
        "time/data_wait_share": wait,
    }


def test_waiting_for_clips_is_told_once_each_time_it_begins():
    watch = SlowdownWatch(judged_seconds=1.0)
    reported = [bool(watch.new_warnings(lap(10, wait), 1)) for wait in (0.05, 0.2, 0.3, 0.0, 0.2)]
    assert reported == [False, True, False, False, True]


def test_a_warning_names_step_figure_and_remedy():
    text = SlowdownWatch(judged_seconds=1.0).new_warnings(lap(10, 0.25), 70)["data_wait"]
    assert text.startswith("step 70: 25% of the time")
    assert "faster disk" in text


def test_a_drop_is_told_against_the_usual_pace():
    watch = SlowdownWatch(judged_seconds=1.0)
    for step in range(MIN_TIMES):
        assert not watch.new_warnings(lap(100), step)
    assert not watch.new_warnings(lap(80), 8)
    assert "60 clips/s, and it was 100 before" in watch.new_warnings(lap(60), 9)["pace"]


def test_a_single_slow_step_is_not_told():
    watch = SlowdownWatch(judged_seconds=10.0)
    for _ in range(10 * MIN_TIMES):
        assert not watch.new_warnings(lap(100), 1)
    assert not watch.new_warnings(lap(10), 2)
    for _ in range(9):
        assert not watch.new_warnings(lap(100), 3)


def test_no_lap_no_numbers():
    clock = Clock(4)
    clock.step_ends()
    assert clock.lap(0.0) == {}
    clock.step_ends()
    assert clock.lap(0.0)["time/clips_per_second"] > 0.0


def test_waiting_and_stalls_are_shares_of_the_lap():
    clock = Clock(4)
    clock.step_ends()
    with clock.waiting(), clock.stalling():
        pass
    clock.step_ends()
    numbers = clock.lap(clock.waited_seconds)
    assert 0.0 <= numbers["time/data_wait_share"] <= 1.0
    stall = numbers["time/checkpoint_stall_seconds"]
    assert stall == pytest.approx(0.0, abs=numbers["time/lap_seconds"])


@pytest.fixture
def now(monkeypatch):
    """The time, to be set."""
    seconds = [0.0]
    monkeypatch.setattr("pipelines.training.throughput.time.monotonic", lambda: seconds[0])
    return seconds


def test_a_pause_is_left_out(now):
    clock = Clock(batch_size=4)
    clock.step_ends()
    with clock.pausing():
        now[0] += 100.0
    now[0] += 2.0
    clock.step_ends()
    assert clock.clips_per_second() == 2.0
    assert clock.lap(0.0)["time/lap_seconds"] == 2.0


def test_the_wait_is_that_of_the_worker_that_waits_longest(now):
    clock = Clock(batch_size=4)
    clock.step_ends()
    with clock.waiting():
        now[0] += 1.0
    now[0] += 9.0
    clock.step_ends()
    assert clock.waited_seconds == 1.0
    assert clock.lap(waited_seconds=5.0)["time/data_wait_share"] == 0.5
    assert clock.waited_seconds == 0.0


def test_the_parts_of_a_lap_sum_to_all_of_it(now):
    clock = Clock(batch_size=4)
    clock.step_ends()
    for part, seconds in ((clock.waiting, 1.0), (clock.viewing, 2.0), (clock.stalling, 0.5)):
        with part():
            now[0] += seconds
    with clock.stepping():
        now[0] += 4.0
        with clock.stalling():
            now[0] += 1.5
    now[0] += 1.0
    clock.step_ends()
    numbers = clock.lap(clock.waited_seconds)
    shares = {name: value for name, value in numbers.items() if name.startswith("time/share_")}
    assert shares == {
        "time/share_wait": 0.1,
        "time/share_views": 0.2,
        "time/share_step": 0.4,
        "time/share_stall": 0.2,
        "time/share_other": 0.1,
    }
    assert sum(clock_lap_again(clock, now).values()) == pytest.approx(1.0)


def clock_lap_again(clock, now):
    """Nothing of the lap before counts."""
    with clock.stepping():
        now[0] += 3.0
    now[0] += 1.0
    clock.step_ends()
    numbers = clock.lap(0.0)
    assert numbers["time/share_step"] == 0.75
    return {name: value for name, value in numbers.items() if name.startswith("time/share_")}


def test_mfu_is_the_share_of_the_peak_of_all_devices(now):
    clock = Clock(batch_size=8, clip_flops=10.0, peak_flops=100.0)
    clock.step_ends()
    now[0] += 2.0
    clock.step_ends()
    numbers = clock.lap(0.0)
    assert numbers["speed/clips_per_second"] == 4.0
    assert numbers["speed/mfu"] == 0.4


def test_without_a_known_peak_there_is_no_mfu(now):
    clock = Clock(batch_size=8, clip_flops=10.0)
    clock.step_ends()
    now[0] += 2.0
    clock.step_ends()
    assert "speed/mfu" not in clock.lap(0.0)
