"""Made clips: their layout, that they decode, and that the same settings give the same bytes."""

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import av
import pytest

from pipelines.config.ingest import SyntheticSettings
from pipelines.errors import UserError
from pipelines.sources.synthetic_clips import STAMP, make_clips, num_files
from pipelines.sources.synthetic_patterns import KINDS

CONFIG = SyntheticSettings(num_clips=20, heldout_fraction=0.5, seed=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "clips"
    progress = []
    make_clips(folder, CONFIG, lambda done, total: progress.append((done, total)))
    return folder, progress


@pytest.fixture
def own_copy(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "clips")


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != STAMP)


def contents_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files_of(folder)}


def ignore_progress(done, total):
    pass


def no_progress(done, total):
    raise AssertionError("nothing should be made")


def streams_of(path):
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        frames = samples = 0
        for frame in container.decode(video, audio):
            if isinstance(frame, av.VideoFrame):
                frames += 1
            else:
                samples += frame.samples
        rate = video.guessed_rate
        return frames / float(rate), samples / audio.rate, video.codec_context.name


def test_every_file_is_counted_in_the_progress(made):
    folder, progress = made
    total = num_files(CONFIG)
    assert progress == [(done, total) for done in range(1, total + 1)]
    assert len(files_of(folder)) == total == 22


def test_each_kind_has_the_same_share_held_out(made):
    whole = [path for path in files_of(made[0]) if path.stem[-3:].isdigit()]
    paths = [path.relative_to(made[0]).parts for path in whole]
    assert Counter((split, kind) for split, kind, _ in paths) == Counter(
        (split, kind) for split in ("train", "test") for kind in KINDS
    )


def test_all_but_two_files_decode_with_picture_and_sound_of_the_same_length(made):
    broken, video_codecs = [], set()
    for path in files_of(made[0]):
        try:
            video_seconds, audio_seconds, video_codec = streams_of(path)
        except av.FFmpegError:
            broken.append(path.name)
            continue
        assert 2.9 < video_seconds < 4.1
        assert abs(video_seconds - audio_seconds) < 0.15
        video_codecs.add(video_codec)
    assert len(broken) == 2
    assert len(video_codecs) >= 4
    assert len({path.suffix for path in files_of(made[0])}) >= 5


def test_same_settings_give_the_same_bytes(made, tmp_path):
    make_clips(tmp_path / "again", CONFIG, ignore_progress)
    assert contents_of(tmp_path / "again") == contents_of(made[0])


def test_another_seed_gives_other_clips(made, tmp_path):
    other = SyntheticSettings(num_clips=16, seed=4)
    make_clips(tmp_path / "other", other, ignore_progress)
    assert not set(contents_of(tmp_path / "other").values()) & set(contents_of(made[0]).values())


def test_a_complete_folder_is_used_as_it_is(own_copy):
    before = {path: path.stat().st_mtime_ns for path in files_of(own_copy)}
    make_clips(own_copy, CONFIG, no_progress)
    assert {path: path.stat().st_mtime_ns for path in files_of(own_copy)} == before


def test_a_folder_with_other_settings_is_refused(own_copy):
    with pytest.raises(UserError, match=r"with num_clips 20 instead of 50, seed 3 instead of 0;"):
        make_clips(own_copy, SyntheticSettings(num_clips=50, heldout_fraction=0.5), no_progress)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(UserError, match="clips holds other files"):
        make_clips(tmp_path / "clips", CONFIG, no_progress)
    assert (tmp_path / "clips" / "holiday.mp4").read_bytes() == b"mine"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write the made clips to .*file/clips: "):
        make_clips(tmp_path / "file" / "clips", CONFIG, no_progress)


def test_an_interrupted_make_leaves_nothing_and_starts_over(tmp_path):
    config, folder = SyntheticSettings(num_clips=16), tmp_path / "clips"

    def interrupt(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_clips(folder, config, interrupt)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []

    left_by_a_killed_process = tmp_path / ".clips.0123456789ab.tmp" / "train"
    left_by_a_killed_process.mkdir(parents=True)
    (left_by_a_killed_process / "half.mp4").write_bytes(b"half")
    make_clips(folder, config, ignore_progress)
    assert len(files_of(folder)) == num_files(config)


def test_two_that_make_the_same_folder_at_once_get_one(tmp_path):
    config, made_by = SyntheticSettings(num_clips=16), [[], []]

    def make(number):
        make_clips(tmp_path / "clips", config, lambda done, _: made_by[number].append(done))

    with ThreadPoolExecutor() as executor:
        list(executor.map(make, range(2)))
    assert sorted(len(made) for made in made_by) == [0, num_files(config)]
