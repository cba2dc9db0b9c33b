"""One clip of each source an epoch, from anywhere in it."""

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest

from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.training.feed import Feed
from tests.helpers.clip_datasets import (
    FEED,
    FRAME_RATE,
    SAMPLE_RATE,
    MadeSegment,
    source_of,
    write_dataset,
    write_segments,
)

WINDOW_TICKS = 16
"""4 s of the made datasets."""
SAMPLES_PER_TICK = round(SAMPLE_RATE / FRAME_RATE)
NUM_SOURCES = 12
TEN_SECONDS = [segment for number in range(NUM_SOURCES) for segment in source_of(number, 40)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Twelve sources of 10 s, each in two rows; row groups of three and shards of eight rows."""
    return ClipDataset.open(write_segments(tmp_path_factory.mktemp("ten") / "clips", TEN_SECONDS))


def make(dataset, **changes):
    arguments = {
        **FEED,
        "batch_size": 6,
        "num_frames": WINDOW_TICKS,
        "num_samples": WINDOW_TICKS * SAMPLES_PER_TICK,
    }
    return Feed(dataset, **arguments | changes)


def drawn(dataset, num_batches, first=0, **changes):
    """(source, epoch, start) of each clip; its frames and samples are those of that window."""
    feed = make(dataset, **changes)
    found = []
    for batch in islice(feed.batches(first), num_batches):
        clips = zip(batch.clips.frames, batch.clips.waveform, batch.epochs, strict=True)
        for frames, waveform, epoch in clips:
            start = int(frames[0, 0, 0, 1])
            assert len(set(frames[:, 0, 0, 0].tolist())) == 1
            assert frames[:, 0, 0, 1].tolist() == list(range(start, start + WINDOW_TICKS))
            first_sample = start * SAMPLES_PER_TICK
            assert waveform.tolist() == list(range(first_sample, first_sample + len(waveform)))
            found.append((int(frames[0, 0, 0, 0]), epoch, start))
    feed.close()
    return found


def starts_of(folder, segments, num_epochs=400, **changes):
    """How often each source's windows begin where."""
    dataset = ClipDataset.open(write_segments(folder, segments))
    num_sources = make(dataset, **changes).num_clips
    clips = drawn(dataset, num_epochs, batch_size=num_sources, **changes)
    assert set(Counter(clip[:2] for clip in clips).values()) == {1}
    return Counter((source, start) for source, _, start in clips)


def test_an_epoch_is_one_clip_of_each_source(dataset):
    feed = make(dataset)
    assert feed.num_clips == NUM_SOURCES
    assert feed.steps_per_epoch == 2.0
    by_epoch = Counter((source, epoch) for source, epoch, _ in drawn(dataset, 20))
    assert by_epoch == Counter((s, e) for s in range(NUM_SOURCES) for e in range(10))
    segments = make(dataset, epoch_unit="segment")
    assert segments.num_clips == 2 * NUM_SOURCES
    assert segments.steps_per_epoch == 4.0


def test_every_start_in_a_source_is_as_likely(dataset):
    """25 starts in 10 s, 4 of them in the second row alone and 15 over the cut."""
    starts = Counter(start for _, _, start in drawn(dataset, 250))
    assert sorted(starts) == list(range(25))
    expected = 250 * 6 / 25
    chi_square = sum((count - expected) ** 2 / expected for count in starts.values())
    assert chi_square < 51.2  # 24 degrees of freedom: one seed in a thousand is above
    segments = Counter(start for _, _, start in drawn(dataset, 60, epoch_unit="segment"))
    assert sorted(segments) == [0, 1, 2, 3, 4, 20, 21, 22, 23, 24]


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("stop", range(5))
def test_a_stop_and_other_workers_change_no_clip(dataset, stop, before, after):
    def of_all(world_size, first, count):
        parts = [
            drawn(dataset, count, first, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        share = 6 // world_size
        return [
            clip
            for batch in range(count)
            for part in parts
            for clip in part[batch * share : (batch + 1) * share]
        ]

    assert of_all(before, 0, stop) + of_all(after, stop, 5 - stop) == drawn(dataset, 5)


def test_a_gap_ends_a_run(tmp_path):
    """18 ticks, a gap, then 20 and 4 ticks: 3 and 9 starts."""
    segments = [MadeSegment(0, 0, 18), MadeSegment(0, 40, 20), MadeSegment(0, 60, 4)]
    starts = starts_of(tmp_path / "clips", segments)
    assert sorted(start for _, start in starts) == [0, 1, 2, *range(40, 49)]


@pytest.mark.parametrize(
    "broken", [{"has_audio": False}, {"has_video": False}, {"size": (8, 6)}, {"num_ticks": 19}]
)
def test_a_row_without_a_stream_or_of_another_size_is_not_straddled(tmp_path, broken):
    segments = source_of(0, 60)
    segments[1] = replace(segments[1], **broken)
    starts = starts_of(tmp_path / "clips", segments)
    whole = {0: range(5), 1: range(20, 25), 2: range(40, 45)}
    if "num_ticks" in broken:  # joins the row before, not the one after
        expected = [*range(24), *whole[2]]
    elif "size" in broken:
        expected = [*whole[0], *whole[1], *whole[2]]
    else:
        expected = [*whole[0], *whole[2]]
    assert sorted(start for _, start in starts) == expected


def test_an_excluded_segment_is_neither_used_nor_straddled(tmp_path):
    segments = source_of(0, 60) + source_of(1, 60)
    dataset = ClipDataset.open(write_segments(tmp_path / "clips", segments))
    excluded = [str(dataset.index.clip_id[1])]
    clips = drawn(dataset, 120, batch_size=2, exclude=excluded)
    starts = {number: {s for source, _, s in clips if source == number} for number in (0, 1)}
    assert starts[0] == {*range(5), *range(40, 45)}
    assert starts[1] >= {10, 16, 30}


def test_rows_of_a_source_in_any_order_and_in_other_shards_are_joined(tmp_path):
    pieces = [source_of(number, 60) for number in range(4)]
    scattered = [part[i] for i in (2, 0, 1) for part in pieces]
    starts = starts_of(tmp_path / "clips", scattered)
    assert {start for _, start in starts} == set(range(45))


def test_the_same_content_twice_is_one_source_and_two_stretches_are_two(tmp_path):
    twice = source_of(0, 40) + [replace(part, name="/other.mp4") for part in source_of(0, 40)]
    assert sorted(start for _, start in starts_of(tmp_path / "twice", twice)) == list(range(25))
    one = [replace(part, stretch=(0.0, 10.0)) for part in source_of(0, 40)]
    other = [replace(part, first_tick=part.first_tick + 40) for part in source_of(0, 40)]
    other = [replace(part, stretch=(10.0, None)) for part in other]
    feed = make(ClipDataset.open(write_segments(tmp_path / "two", one + other)))
    assert feed.num_clips == 2
    starts = {start for _, _, start in drawn(ClipDataset.open(tmp_path / "two"), 200, batch_size=2)}
    assert starts == {*range(25), *range(40, 65)}


def test_only_a_source_without_a_whole_window_is_padded(tmp_path):
    """10 ticks, a gap, 6 ticks: each run is taken whole, half of the time."""
    segments = [MadeSegment(0, 0, 10), MadeSegment(0, 20, 6), *source_of(1, 40)]
    dataset = ClipDataset.open(write_segments(tmp_path / "clips", segments))
    feed = make(dataset, batch_size=2)
    found = Counter()
    for batch in islice(feed.batches(0), 60):
        for frames, waveform in zip(batch.clips.frames, batch.clips.waveform, strict=True):
            if int(frames[0, 0, 0, 0]) == 0:
                begin, length = (0, 10) if int(frames[0, 0, 0, 1]) == 0 else (20, 6)
                ticks = [begin + tick % length for tick in range(WINDOW_TICKS)]
                assert frames[:, 0, 0, 1].tolist() == ticks
                there = length * SAMPLES_PER_TICK
                first = begin * SAMPLES_PER_TICK
                assert waveform[:there].tolist() == list(range(first, first + there))
                assert not waveform[there:].any()
                found[begin] += 1
    feed.close()
    assert min(found[0], found[20]) > 15


class CountingDataset(ClipDataset):
    """Counts the rows that are read."""

    num_rows = 0

    def read_group(self, group):
        found = super().read_group(group)
        CountingDataset.num_rows += len(found.table)
        return found


def test_of_a_long_source_only_the_row_groups_of_its_windows_are_read(tmp_path):
    segments = source_of(0, 240, segment_ticks=4)
    for number in range(1, 12):
        segments += source_of(number, 20)
    folder = write_segments(tmp_path / "clips", segments, rows_per_group=5)
    dataset = CountingDataset.open(folder)
    CountingDataset.num_rows = 0
    feed = make(dataset, batch_size=12, shuffle_window=100)
    next(feed.batches(0))
    feed.close()
    assert CountingDataset.num_rows <= 4 * (2 * 5 + 11)  # of at most four windows read ahead


@pytest.mark.parametrize("epoch_unit", ["source", "segment"])
def test_sources_of_one_segment_come_as_before_epoch_units(tmp_path, epoch_unit):
    """The digest is of the feed that knew segments alone."""
    dataset = ClipDataset.open(
        write_dataset(tmp_path / "clips", 23, size=lambda clip: (4 + clip % 3, 9 - clip % 3))
    )
    digest = hashlib.sha256()
    for num_ticks in (4, 11):
        feed = Feed(
            dataset,
            **FEED | {"num_frames": num_ticks, "num_samples": num_ticks * SAMPLES_PER_TICK},
            batch_size=6,
            epoch_unit=epoch_unit,
        )
        for batch in islice(feed.batches(0), 12):
            digest.update(repr((batch.clip_ids, batch.epochs)).encode())
            for tensor in batch.clips:
                digest.update(tensor.numpy().tobytes())
        feed.close()
    assert digest.hexdigest() == "e4abcbf6da1bdb5c4e9b0e018a50181781c6445aecde458f0c166ca0e40a3eeb"
