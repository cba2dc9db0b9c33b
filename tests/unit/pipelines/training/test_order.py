"""The order of training: lanes, workers and epochs, without reading anything."""

from itertools import takewhile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.training.order import Order, choose_num_lanes


def make(group_sizes, *, batch_size, num_lanes=None, shuffle_window=4, seed=3):
    groups = np.repeat(np.arange(len(group_sizes)), group_sizes)
    return Order(
        groups,
        np.arange(len(groups)),
        batch_size=batch_size,
        shuffle_window=shuffle_window,
        num_lanes=num_lanes,
        seed=seed,
        dataset_id="made",
    )


def windows_of(order, rank, world_size, first, *, end):
    """The windows of a worker that begin before a position."""
    windows = order.windows(first, rank, world_size)
    return takewhile(lambda window: window.positions[0] < end, windows)


def line(order, batch_size, *, first, stop, world_size):
    """(source, epoch) of each position of some batches, gathered from all workers."""
    found = {}
    begin, end = first * batch_size, stop * batch_size
    for rank in range(world_size):
        share = batch_size // world_size
        for window in windows_of(order, rank, world_size, first, end=end):
            slots = window.positions % batch_size
            assert (slots // share == rank).all()
            assert (window.positions >= begin).all()
            for source, position in zip(window.sources, window.positions, strict=True):
                assert position not in found
                found[int(position)] = int(source), window.epoch
    return [found[position] for position in range(begin, end)]


@settings(deadline=None, max_examples=60)
@given(
    group_sizes=st.lists(st.integers(1, 5), min_size=1, max_size=30),
    lanes_and_clips=st.sampled_from([(1, 6), (2, 3), (3, 4), (4, 3), (6, 2), (12, 1), (4, 6)]),
    workers=st.lists(st.sampled_from([1, 2, 3, 6]), min_size=1, max_size=4),
    shuffle_window=st.sampled_from([1, 4, 9]),
)
def test_an_epoch_is_each_source_once_in_a_row_for_any_lanes_stops_and_workers(
    group_sizes, lanes_and_clips, workers, shuffle_window
):
    num_lanes, lane_clips = lanes_and_clips
    batch_size, num_sources = num_lanes * lane_clips, sum(group_sizes)
    options = {"batch_size": batch_size, "num_lanes": num_lanes, "shuffle_window": shuffle_window}
    num_batches = 3 * num_sources // batch_size + 2
    whole = line(make(group_sizes, **options), batch_size, first=0, stop=num_batches, world_size=1)
    for epoch in range(num_batches * batch_size // num_sources):
        part = whole[epoch * num_sources : (epoch + 1) * num_sources]
        assert sorted(part) == [(source, epoch) for source in range(num_sources)]
    first, seen = 0, []
    for number, world_size in enumerate(workers, start=1):
        stop = num_batches * number // len(workers)
        order = make(group_sizes, **options)
        seen += line(order, batch_size, first=first, stop=stop, world_size=world_size)
        first = stop
    assert seen == whole


def groups_of_worker(order, rank, world_size, batch_size, num_epochs=1):
    """Row groups that a worker reads, as often as it does, and its clips."""
    end = num_epochs * order.num_sources // batch_size * batch_size
    num_reads = num_clips = 0
    for window in windows_of(order, rank, world_size, 0, end=end):
        num_reads += len(np.unique(window.sources // 16))
        num_clips += len(window.sources)
    return num_reads, num_clips


@pytest.mark.parametrize(
    ("world_size", "batch_size"), [(1, 256), (8, 256), (64, 256), (64, 512), (512, 2048)]
)
def test_a_worker_reads_what_it_uses(world_size, batch_size):
    """Row groups of 16 sources, as an ingest writes them."""
    order = make([16] * 20_000, batch_size=batch_size, shuffle_window=16)
    for rank in {0, world_size // 2, world_size - 1}:
        num_reads, num_clips = groups_of_worker(order, rank, world_size, batch_size)
        assert 16 * num_reads / num_clips < 1.1


def test_workers_that_do_not_divide_the_lanes_share_some():
    order = make([16] * 2_000, batch_size=192, num_lanes=32, shuffle_window=16)
    num_reads, num_clips = groups_of_worker(order, 1, 6, 192)  # 5.3 lanes: parts of two of 6
    assert 16 * num_reads / num_clips < 1.3


def test_the_number_of_lanes_follows_from_dataset_and_batch():
    assert choose_num_lanes(16, 63) == 1
    assert choose_num_lanes(16, 64) == 2
    assert choose_num_lanes(2, 10_000) == 1
    assert choose_num_lanes(96, 10_000) == 24
    assert choose_num_lanes(256, 32 * 63) == 32
    assert choose_num_lanes(2048, 10**6) == 512
    assert make([16] * 640, batch_size=256).num_lanes == 16


def test_sources_of_a_row_group_are_spread_over_batches():
    order = make([16] * 2_048, batch_size=256)
    assert order.num_lanes == 64
    whole = line(order, 256, first=0, stop=32, world_size=1)
    for begin in range(0, len(whole), 256):
        groups = np.array([source // 16 for source, _ in whole[begin : begin + 256]])
        assert np.unique(groups, return_counts=True)[1].max() <= 8
    assert whole != line(
        make([16] * 2_048, batch_size=256, seed=4), 256, first=0, stop=32, world_size=1
    )
