import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from pipelines.config.base import LimitsSettings
from pipelines.config.ingest import ClipsSettings, IngestSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import UserError
from pipelines.ingest import unit_shards
from pipelines.ingest.ingest import check_ingest, ingest
from pipelines.ingest.plan import Changes
from pipelines.ingest.unit import Unit, UnitSource
from pipelines.ingest.worker import UnitIngester
from pipelines.media.reasons import REASONS
from pipelines.training.feed import Feed
from tests.helpers.clip_datasets import FEED, index_of
from tests.helpers.media import frame_number, tone, write_growing, write_media, write_numbered

pytestmark = pytest.mark.ray
SETTINGS = IngestSettings(short_side=32, segment_seconds=2.0, sources_per_shard=2, num_workers=1)
SEVERAL = SETTINGS.model_copy(update={"num_workers": None})
"""A worker for each CPU, for what several workers could do otherwise than one."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Eight good files in two classes, and one of each kind that is rejected."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(8):
        label_folder = folder / ("cat" if number % 2 else "dog")
        label_folder.mkdir(exist_ok=True)
        suffix = (".mp4", ".mkv", ".avi", ".ts")[number % 4]
        write_numbered(label_folder / f"{number}{suffix}", 60 + 10 * number)
    shutil.copy(folder / "dog/0.mp4", folder / "dog/copy.mp4")
    write_numbered(folder / "cat/short.mp4", 5)
    (folder / "cat/text.mp4").write_text("no media")
    (folder / "cat/empty.mp4").touch()
    (folder / "cat/broken.mp4").symlink_to("nowhere.mp4")
    (folder / "notes.txt").touch()
    return folder


def run(videos, output, settings=SETTINGS, on_progress=lambda *_: None):
    return ingest(str(videos), str(output), settings, on_progress=on_progress)


def clip_ids(output):
    return sorted(pq.read_table(output / "clips", columns=["clip_id"])["clip_id"].to_pylist())


def leftovers(output):
    known = ("clips", "rejects", "manifest.json", "index.arrow", ".ingest")
    state = {"lock", "settings.json", "fingerprints.parquet"}
    return [
        name
        for name in files(output)
        if name.split("/")[0] not in known
        or (name.startswith(".ingest/") and name.removeprefix(".ingest/") not in state)
        or os.path.basename(name).startswith(".")
    ] + [str(folder) for folder in (output / ".ingest").iterdir() if folder.is_dir()]


def check_index(output):
    """The index file is there, and says of every row what its shard says."""
    index = index_of(output)
    columns = ClipDataset.open(output).small_columns(["clip_id", "source"])
    assert index.clip_id.tolist() == columns["clip_id"].to_pylist()
    assert index.source.tolist() == columns["source"].to_pylist()


def files(output):
    return sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def made(videos, tmp_path_factory, local_ray):
    """A complete dataset, its summary and the news on the way."""
    output = tmp_path_factory.mktemp("made") / "clips"
    news = []
    summary = run(videos, output, SEVERAL, on_progress=lambda *what: news.append(what))
    return output, summary, news


def test_every_source_ends_in_one_place_and_says_why(made):
    output, summary, _ = made
    assert summary.sources == 13 == summary.accepted + summary.rejected
    assert summary.accepted == 8
    assert summary.rejects_by_reason == {
        "duplicate": 1,
        "empty_file": 1,
        "not_media": 1,
        "too_short": 1,
        "unreadable": 1,
    }
    assert set(summary.rejects_by_reason) <= set(REASONS)
    assert summary.ignored == {".txt": 1}
    rejects = {os.path.basename(row["source"]): row for row in ClipDataset.open(output).rejects()}
    assert rejects["copy.mp4"]["message"].endswith("dog/0.mp4")
    assert rejects["text.mp4"]["byte_size"] == 8
    assert all(row["message"] for row in rejects.values())


def test_rows_hold_the_frames_and_the_sound_of_their_time(made):
    output, summary, _ = made
    table = pq.read_table(output / "clips")
    assert len(table) == summary.clips == summary.new_clips
    rows = sorted(table.to_pylist(), key=lambda row: (row["source"], row["start_seconds"]))
    (row,) = (r for r in rows if r["source"].endswith("/5.mkv") and r["start_seconds"] == 2.0)
    frames = np.frombuffer(row["frames"], np.uint8)
    frames = frames.reshape(row["num_frames"], row["height"], row["width"], 3)
    numbers = [frame_number(frame) for frame in frames]
    assert numbers == [(2 * tick + 1) * 25 // 16 for tick in range(16, 32)]
    assert row["num_samples"] == 32_000 == len(np.frombuffer(row["waveform"], np.int16))
    assert (row["label"], row["video_codec"], row["native_rate"]) == ("cat", "h264", 25.0)
    assert {row["split"] for row in rows} <= {"train", "test"}


def test_the_manifest_says_what_there_is(made):
    output, summary, _ = made
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["dataset_id"] == summary.dataset_id
    assert manifest["sources"] == manifest["accepted"] + manifest["rejected"] == 13
    assert manifest["settings"]["segment_seconds"] == 2.0
    assert ClipDataset.open(output).num_clips == summary.clips


def test_progress_counts_every_source(made):
    _, summary, news = made
    done = [done for done, _, note in news if "rejected" in note]
    assert done == sorted(set(done))
    assert done[-1] == 13
    assert {total for _, total, _ in news} == {13}
    assert news[-1][2] == f"{summary.clips} clips, 5 rejected"


def test_a_second_run_changes_nothing(made, videos):
    output, summary, _ = made
    before = {name: (output / name).stat().st_mtime_ns for name in files(output)}
    again = run(videos, output, SEVERAL)
    assert again.new_clips == 0
    assert again.dataset_id == summary.dataset_id
    changed = {
        name for name in files(output) if before.get(name) != (output / name).stat().st_mtime_ns
    }
    assert changed <= {".ingest/lock", ".ingest/settings.json"}


def rows_of(output):
    """All clips and all rejects, each in an order of its own."""
    clips = pq.read_table(output / "clips").to_pylist()
    rejects = []
    for file in (output / "rejects").glob("*.parquet"):
        rejects += pq.read_table(file).to_pylist()
    return (
        sorted(clips, key=lambda row: row["clip_id"]),
        sorted(rejects, key=lambda row: row["source"]),
    )


def test_a_changed_folder_costs_what_is_different_and_gives_what_a_new_run_gives(
    local_ray, videos, tmp_path, monkeypatch
):
    monkeypatch.setattr(unit_shards, "_SMALL_COUNT", 0)  # workers revise shards here
    media, output = tmp_path / "media", tmp_path / "clips"
    shutil.copytree(videos, media, symlinks=True)
    run(media, output)
    (media / "dog/0.mp4").rename(media / "cat/0.mp4")
    (media / "cat/3.ts").unlink()
    (media / "cat/short.mp4").unlink()
    shutil.copy(media / "dog/4.mp4", media / "dog/copy.mp4")
    write_numbered(media / "cat/1.mkv", 60)
    write_numbered(media / "cat/text.mp4", 70, waveform=None)
    write_numbered(media / "dog/new.mp4", 80)
    shutil.copy(media / "dog/new.mp4", media / "dog/again.mp4")
    shutil.copy(videos / "dog/6.avi", media / "dog/66.avi")
    summary = run(media, output)
    assert summary.changes == Changes(new=3, changed=3, removed=2, renamed=1)
    expected = run(media, tmp_path / "expected")
    assert summary.new_clips == 1 + 1 + 2  # of 1.mkv, text.mp4 and new.mp4
    assert summary.dataset_id == expected.dataset_id
    assert rows_of(output) == rows_of(tmp_path / "expected")
    check_index(output)
    written = (output / "index.arrow").stat()
    assert run(media, output).new_clips == 0
    assert (output / "index.arrow").stat().st_mtime_ns == written.st_mtime_ns
    assert leftovers(output) == []
    assert run(media, output).changes == Changes()


def test_the_same_media_elsewhere_give_the_same_order(made, videos, tmp_path):
    there = tmp_path / "another mount" / "media"
    shutil.copytree(videos, there, symlinks=True)
    run(there, tmp_path / "clips")
    before, after = (ClipDataset.open(folder) for folder in (made[0], tmp_path / "clips"))
    assert after.dataset_id == before.dataset_id
    assert [Path(shard).name for shard in after.shards] == [Path(s).name for s in before.shards]
    assert after.index.clip_id.tolist() == before.index.clip_id.tolist()
    assert after.index.order_sha256 == before.index.order_sha256
    assert feed_order(after) == feed_order(before)


def feed_order(dataset):
    """The clips of two epochs in the order of training."""
    size = {"num_frames": 8, "frame_rate": 8.0, "num_samples": 16_000, "sample_rate": 16_000}
    how = FEED | size | {"splits": ("train", "test"), "batch_size": 3}
    with closing(Feed(dataset, **how)) as feed:
        batches = feed.batches(0)
        return [next(batches).clip_ids for _ in range(8)]


def test_a_file_that_cannot_be_read_now_keeps_its_clips_and_is_tried_again_later(
    local_ray, videos, tmp_path
):
    media, output = tmp_path / "media", tmp_path / "clips"
    media.mkdir()
    shutil.copy(videos / "dog/0.mp4", media / "a.mp4")
    (media / "b.mp4").symlink_to(media / "elsewhere")
    assert run(media, output).rejects_by_reason == {"unreadable": 1}
    shutil.copy(videos / "cat/1.mkv", media / "elsewhere")
    (media / "a.mp4").unlink()
    (media / "a.mp4").symlink_to("nowhere")
    summary = run(media, output)
    assert (summary.accepted, summary.rejects_by_reason) == (2, {"duplicate": 1})
    assert {os.path.basename(row["source"]) for row in rows_of(output)[0]} == {"a.mp4", "b.mp4"}


def test_two_runs_into_one_dataset_at_the_same_time_are_refused(made, videos, tmp_path):
    output = tmp_path / "clips"
    shutil.copytree(made[0], output)
    refused = []

    def begin_another(done, total, note):
        if not refused:
            with pytest.raises(UserError, match=rf"is being written by process {os.getpid()} on"):
                run(videos, output)
            refused.append(True)

    assert run(videos, output, on_progress=begin_another).dataset_id == made[1].dataset_id
    assert refused


def test_a_damaged_shard_is_named_and_made_anew_when_it_is_deleted(made, videos, tmp_path):
    output = tmp_path / "clips"
    shutil.copytree(made[0], output)
    shard = max((output / "clips").glob("*.parquet"), key=lambda file: file.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"shard \({shard}\) is damaged: .*; delete it"):
        run(videos, output)
    shard.unlink()
    assert run(videos, output).dataset_id == made[1].dataset_id
    assert rows_of(output) == rows_of(made[0])


def test_a_limit_that_is_raised_lets_pass_what_it_rejected(made, videos, tmp_path):
    output = tmp_path / "clips"
    tight = SETTINGS.model_copy(update={"limits": LimitsSettings(max_seconds=3.5)})
    first = run(videos, output, tight)
    assert first.rejects_by_reason["too_long"] > 1
    summary = run(videos, output, SETTINGS)
    assert "too_long" not in summary.rejects_by_reason
    assert summary.accepted == first.accepted + first.rejects_by_reason["too_long"]
    assert rows_of(output) == rows_of(made[0])
    assert run(videos, output, SETTINGS).new_clips == 0
    with pytest.raises(UserError, match=r"limits\.max_seconds is 21600\.0 there and 3\.5 here"):
        run(videos, output, tight)


def test_damaged_files_of_the_state_are_named_or_made_anew(made, videos, tmp_path):
    output = tmp_path / "clips"
    shutil.copytree(made[0], output)
    whole = json.loads((output / "manifest.json").read_text())
    (output / "manifest.json").write_text('{"format_ver')
    (output / ".ingest/fingerprints.parquet").write_bytes(b"PAR1")
    (output / "index.arrow").write_bytes(b"")
    assert run(videos, output, SEVERAL).new_clips == 0
    check_index(output)
    assert json.loads((output / "manifest.json").read_text()) == whole
    for damaged in ("", "[]"):
        (output / ".ingest/settings.json").write_text(damaged)
        for refuse in (check_ingest, lambda *arguments: run(*arguments)):
            with pytest.raises(UserError, match=r"settings\.json is damaged: .*another output"):
                refuse(str(videos), output, SETTINGS)


def test_other_settings_and_other_folders_are_refused(made, videos, tmp_path):
    output, _, _ = made
    changed = SETTINGS.model_copy(update={"frame_rate": 4.0})
    for refuse in (check_ingest, lambda *arguments: run(*arguments)):
        with pytest.raises(UserError, match=r"frame_rate is 8.0 there and 4.0 here"):
            refuse(str(videos), output, changed)
        with pytest.raises(UserError, match=r"input is .* there and .*cat here"):
            refuse(str(videos / "cat"), output, SETTINGS)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="must be empty or a clip dataset, but holds file"):
        run(videos, tmp_path)
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        run(videos, tmp_path / "file" / "clips")


def test_too_many_rejects_fail_but_stay_to_be_looked_at(local_ray, videos, tmp_path):
    output = tmp_path / "clips"
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.mp4").write_text("no media")
    with pytest.raises(UserError, match=r"gives no clip: 1 source rejected .*not_media"):
        run(tmp_path / "bad", output)
    assert pq.read_table(output / "rejects").num_rows == 1
    strict = SETTINGS.model_copy(update={"max_reject_fraction": 0.5})
    (tmp_path / "half").mkdir()
    shutil.copy(videos / "dog/0.mp4", tmp_path / "half/a.mp4")
    shutil.copy(videos / "cat/text.mp4", tmp_path / "half/b.mp4")
    run(tmp_path / "half", tmp_path / "half_clips", strict)
    (tmp_path / "half/c.mp4").write_text("no media either")
    with pytest.raises(UserError, match=r"2 of 3 sources .* more than max_reject_fraction \(0.5\)"):
        run(tmp_path / "half", tmp_path / "half_clips", strict)


def test_a_source_that_fails_half_way_leaves_no_clip(local_ray, tmp_path):
    media, output = tmp_path / "media", tmp_path / "clips"
    media.mkdir()
    write_numbered(media / "good.mp4", 100)
    write_growing(media / "grows.ts")
    limits = LimitsSettings(max_pixels=20_000)
    settings = SETTINGS.model_copy(update={"rows_per_group": 1, "limits": limits})
    summary = run(media, output, settings)
    assert (summary.accepted, summary.rejects_by_reason) == (1, {"too_many_pixels": 1})
    sources = set(pq.read_table(output / "clips", columns=["source"])["source"].to_pylist())
    assert sources == {str(media / "good.mp4")}


def test_memory_does_not_grow_with_the_length_of_a_source(tmp_path):
    def growth(seconds):
        noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
        frames = [np.roll(noise, i, 0) for i in range(4)] * seconds
        path = write_media(tmp_path / f"{seconds}.avi", frames, frame_rate=4)
        output = tmp_path / f"clips{seconds}"
        for part in ("clips", "rejects"):
            (output / part).mkdir(parents=True)
        source = UnitSource(str(path), str(path), "hash", 1, None, None, None)
        settings = SETTINGS.model_copy(update={"short_side": 96})
        ingester = UnitIngester(str(output), settings.model_dump(mode="json"))
        before = psutil.Process().memory_info().rss
        (outcome,) = ingester({"unit": Unit("unit", (source,)).to_json()})
        ingester.close()
        assert outcome["clips"] == seconds / 2
        return psutil.Process().memory_info().rss - before

    growth(60)
    # The clips of the second one are 235 MB.
    assert growth(800) < 80_000_000


def test_what_cannot_be_written_ends_the_run(tmp_path):
    unit = UnitIngester(str(tmp_path / "gone"), SETTINGS.model_dump(mode="json"))
    (row,) = unit({"unit": '{"name": "u", "sources": []}'})
    assert row["failed"].startswith("cannot be written: No such file or directory")


def test_an_output_that_was_only_begun_can_be_begun_again(videos, tmp_path):
    """A disk that is full from the first byte on, and then has room."""
    output = tmp_path / "clips"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(UserError, match="cannot be written: File too large"):
            run(videos, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert output.exists()
    check_ingest(str(videos), str(output), SETTINGS)


def test_a_list_brings_splits_and_groups(local_ray, videos, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text(
        "path,label,split,group\n"
        f"{videos}/dog/0.mp4,hound,train,a\n{videos}/cat/1.mkv,cat,heldout,b\n"
        f"{tmp_path}/gone.mp4,cat,train,c\n"
    )
    summary = run(table, tmp_path / "clips")
    assert summary.rejects_by_reason == {"unreadable": 1}
    rows = pq.read_table(tmp_path / "clips/clips", columns=["label", "split", "group"]).to_pylist()
    assert {tuple(row.values()) for row in rows} == {("hound", "train", "a"), ("cat", "test", "b")}


def test_odd_names_and_things_that_are_no_files_end_in_clips_or_rejects(local_ray, tmp_path):
    media = tmp_path / "media"
    (media / "folder.mp4").mkdir(parents=True)
    good = [
        media / 'it\'s a "b".mp4',
        media / "two\nlines.mp4",
        media / os.fsdecode(b"\xff\xfe.mp4"),
        media / "%41 file:b?c#d.mp4",
        media / "folder.mp4/inside.mp4",
    ]
    for number, path in enumerate(good):
        write_numbered(tmp_path / "a.mp4", 60 + number)
        shutil.move(tmp_path / "a.mp4", path)
    (media / "loop.mp4").symlink_to("loop.mp4")
    (media / "folder.mp4/up").symlink_to("..")
    (media / "table.mp4").write_text("path\n")
    os.mkfifo(media / "pipe.mp4")
    summary = run(media, tmp_path / "clips")
    assert summary.accepted == len(good)
    assert summary.rejects_by_reason == {"not_media": 1, "unreadable": 1}
    # The same from a list, which can name what a folder would not give.
    table = tmp_path / "list.csv"
    names = [*good, media / "loop.mp4", media / "folder.mp4", media / "pipe.mp4", media / "gone"]
    with open(table, "wb") as file:
        file.write(b"path\n")
        for name in names:
            file.write(b'"' + os.fsencode(name).replace(b'"', b'""') + b'"\n')
    listed = run(table, tmp_path / "listed")
    assert listed.dataset_id == summary.dataset_id
    assert listed.rejects_by_reason == {"empty_file": 1, "unreadable": 3}


def test_only_the_stretch_that_a_list_names_is_kept_and_another_is_decoded_again(
    local_ray, tmp_path
):
    write_numbered(tmp_path / "a.mp4", 250)
    write_numbered(tmp_path / "b.mp4", 252)
    write_numbered(tmp_path / "cut.mp4", 101)
    table = tmp_path / "list.jsonl"
    table.write_text(
        '{"path": "a.mp4", "labels": ["x", "y"], "start": 4, "end": 8}\n'
        '{"path": "b.mp4", "labels": ["x"], "start": 30, "end": 34}\n'
        '{"path": "cut.mp4", "label": "z", "start": 30, "end": 34}\n'
    )
    summary = run(table, tmp_path / "clips")
    assert summary.rejects_by_reason == {"too_short": 1}
    columns = ["source", "start_seconds", "label", "labels"]
    rows = pq.read_table(tmp_path / "clips/clips", columns=columns).to_pylist()
    found = {(row["source"].removeprefix(str(tmp_path)), row["start_seconds"]): row for row in rows}
    assert set(found) == {("/a.mp4", 4.0), ("/a.mp4", 6.0), ("/cut.mp4", 0.0), ("/cut.mp4", 2.0)}
    assert found["/a.mp4", 4.0]["label"] is None
    assert found["/a.mp4", 4.0]["labels"] == ["x", "y"]
    assert found["/cut.mp4", 2.0]["label"] == "z"
    assert found["/cut.mp4", 2.0]["labels"] == ["z"]
    table.write_text(
        '{"path": "a.mp4", "start": 0, "end": 2}\n{"path": "b.mp4", "start": 2, "end": 4}\n'
    )
    again = run(table, tmp_path / "clips")
    assert (again.changes, again.rejected) == (Changes(changed=2, removed=1), 0)
    columns = ["source", "start_seconds", "stretch_start_seconds", "stretch_end_seconds"]
    rows = pq.read_table(tmp_path / "clips/clips", columns=columns).to_pylist()
    stretches = {tuple(row.values()) for row in rows}
    assert stretches == {(f"{tmp_path}/a.mp4", 0.0, 0.0, 2.0), (f"{tmp_path}/b.mp4", 2.0, 2.0, 4.0)}
    assert again.dataset_id == run(table, tmp_path / "anew").dataset_id
    assert run(table, tmp_path / "clips").changes == Changes()


@pytest.mark.parametrize("encoding", ["jpeg", "h264"])
def test_encoded_frames_make_another_dataset_of_the_same_clips(made, videos, tmp_path, encoding):
    raw_output, raw, _ = made
    output = tmp_path / "clips"
    settings = SETTINGS.model_copy(update={"clips": ClipsSettings(encoding=encoding)})
    summary = run(videos, output, settings)
    assert summary.dataset_id != raw.dataset_id
    assert clip_ids(output) == clip_ids(raw_output)
    assert leftovers(output) == []
    check_index(output)
    dataset = ClipDataset.open(output)
    assert dataset.frames_encoding == encoding
    pairs = zip(
        *(
            sorted(each.clips(range(each.num_clips)), key=lambda clip: clip.clip_id)
            for each in (dataset, ClipDataset.open(raw_output))
        ),
        strict=True,
    )
    for clip, plain in pairs:
        assert np.abs(clip.frames.astype(int) - plain.frames).mean() < 4
        assert np.array_equal(clip.waveform, plain.waveform)
    again = run(videos, output, settings)
    assert (again.new_clips, again.dataset_id) == (0, summary.dataset_id)


def test_a_dataset_from_before_encodings_takes_no_encoded_clips(made, videos, tmp_path):
    output = tmp_path / "clips"
    shutil.copytree(made[0], output)
    state = output / ".ingest/settings.json"
    values = json.loads(state.read_text())
    for name in ("clips.encoding", "clips.quality"):
        del values["settings"][name]
    state.write_text(json.dumps(values))
    assert run(videos, output).new_clips == 0
    settings = SETTINGS.model_copy(update={"clips": ClipsSettings(encoding="jpeg")})
    values = json.loads(state.read_text())
    for name in ("clips.encoding", "clips.quality"):
        del values["settings"][name]
    state.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"clips\.encoding is raw there and jpeg here"):
        run(videos, output, settings)


def test_a_short_source_sound_alone_and_picture_alone_are_accepted(local_ray, tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    write_numbered(media / "short.mp4", 10)
    write_media(media / "sound.wav", waveform=tone(2.0), codecs=("", "pcm_s16le"))
    write_numbered(media / "picture.mp4", 50, waveform=None)
    settings = SETTINGS.model_copy(update={"min_source_seconds": 0.25})
    summary = run(media, tmp_path / "clips", settings)
    assert (summary.accepted, summary.clips) == (3, 3)
    index = ClipDataset.open(tmp_path / "clips").index
    assert sorted(zip(index.num_frames.tolist(), index.has_audio.tolist(), strict=True)) == [
        (0, True),
        (3, True),
        (16, False),
    ]
    with pytest.raises(UserError, match=r"min_source_seconds is 0\.25 there and None here"):
        run(media, tmp_path / "clips")


@pytest.mark.slow
def test_a_killed_run_is_completed_by_the_next_one(made, videos, tmp_path):
    """The driver is killed when some units are complete and others are being written."""
    _, expected, _ = made
    output = tmp_path / "clips"
    program = (
        "import ray\n"
        "from pipelines.config.ingest import ClipsSettings, IngestSettings\n"
        "from pipelines.ingest.ingest import ingest\n"
        "ray.init(address='local', num_cpus=2, include_dashboard=False, "
        "object_store_memory=200_000_000)\n"
        f"settings = IngestSettings.model_validate({SETTINGS.model_dump(mode='json')!r})\n"
        f"ingest({str(videos)!r}, {str(output)!r}, settings, on_progress=lambda *_: None)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as driver:
        for _ in range(800):
            if len(list(output.glob("clips/*.parquet"))) >= 2 or driver.poll() is not None:
                break
            time.sleep(0.05)
        os.killpg(driver.pid, signal.SIGKILL)
    assert not (output / "manifest.json").exists()
    (output / "clips/.0123.parquet.abc.tmp").touch()
    (output / "rejects/incomplete.parquet").touch()
    summary = run(videos, output)
    assert 0 < summary.new_clips < summary.clips
    assert summary.dataset_id == expected.dataset_id
    assert clip_ids(output) == clip_ids(made[0])
    assert leftovers(output) == []
    assert {name for name in files(output) if "parquet" in name} == {
        name for name in files(made[0]) if "parquet" in name
    }


def test_ctrl_c_leaves_a_dataset_that_the_next_run_completes(made, videos, tmp_path):
    def interrupt(done, total, note):
        if done >= 6:
            raise KeyboardInterrupt

    output = tmp_path / "clips"
    with pytest.raises(KeyboardInterrupt):
        run(videos, output, SEVERAL, on_progress=interrupt)
    with pytest.raises(UserError, match="did not finish"):
        ClipDataset.open(output)
    summary = run(videos, output)
    assert summary.dataset_id == made[1].dataset_id
    assert clip_ids(output) == clip_ids(made[0])
    assert leftovers(output) == []


# `test_unit_graph.py` says that a unit of a dead worker is done again and counted once.
@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_its_unit_done_again(made, videos, tmp_path):
    killed = []

    def kill_workers(done, total, note):
        for process in (
            psutil.Process().children(recursive=True) if not killed and 0 < done < total else []
        ):
            with suppress(psutil.Error):  # it may have ended meanwhile
                if any("UnitRunner" in word for word in process.cmdline()):
                    process.kill()
                    killed.append(process.pid)

    summary = run(videos, tmp_path / "clips", SEVERAL, on_progress=kill_workers)
    assert killed
    assert summary.dataset_id == made[1].dataset_id
    assert clip_ids(tmp_path / "clips") == clip_ids(made[0])
