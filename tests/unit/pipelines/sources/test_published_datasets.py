"""Small trees in the official layouts, with lists in the official formats."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.config.ingest import IngestSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.errors import UserError
from pipelines.ingest.ingest import ingest
from pipelines.sources.listing import list_input
from pipelines.sources.published_datasets import KINETICS_SOUND_CLASSES, SAME_NAME
from tests.helpers.media import tone, write_media, write_numbered


def write(folder, texts, media=()):
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in media:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def ucf101(folder):
    write(
        folder,
        {
            "ucfTrainTestlist/classInd.txt": "1 ApplyEyeMakeup\n2 Archery\n",
            "ucfTrainTestlist/trainlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n"
            "Archery/v_Archery_g08_c02.avi 2\r\n",
            "ucfTrainTestlist/testlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\r\n",
            "ucfTrainTestlist/trainlist02.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1\n",
            "ucfTrainTestlist/testlist02.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi\n",
        },
        [
            "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
            "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
        ],
    )


def hmdb51(folder):
    write(
        folder,
        {
            "testTrainMulti_7030_splits/brush_hair_test_split1.txt": "a_brush_hair_u_0.avi 1 \n"
            "#b'_[x]_brush_hair_u_1.avi 2 \nc_brush_hair_2.avi 0 \n",
            "testTrainMulti_7030_splits/wave_test_split1.txt": "d_wave_0.avi 1 \n",
            "testTrainMulti_7030_splits/wave_test_split3.txt": "d_wave_0.avi 2 \n",
        },
        [
            "hmdb51_org/brush_hair/a_brush_hair_u_0.avi",
            "hmdb51_org/brush_hair/#b'_[x]_brush_hair_u_1.avi",
            "hmdb51_org/brush_hair/c_brush_hair_2.avi",
            "hmdb51_org/wave/d_wave_0.avi",
        ],
    )


def kinetics(folder):
    write(
        folder,
        {
            "annotations/train.csv": "label,youtube_id,time_start,time_end,split\n"
            '"playing guitar",---QUuC4vJs,84,94,train\nabseiling,_4YTwq0-73Y,0,10,train\n',
            "annotations/val.csv": "label,youtube_id,time_start,time_end,split\n"
            "singing,aaaaaaaaaaa,5,15,val\nsinging,bbbbbbbbbbb,0,10,val\n",
            "annotations/test.csv": "youtube_id,time_start,time_end,split\nccccccccccc,1,11,test\n",
        },
        [
            "train/playing guitar/---QUuC4vJs_000084_000094.mp4",
            "train/abseiling/_4YTwq0-73Y_000000_000010.mp4",
            "val/aaaaaaaaaaa.webm",
            "test/ccccccccccc_000001_000011.mp4",
        ],
    )


def audioset(folder):
    header = (
        "# Segments csv created Sun Mar  5 10:54:25 2017\n"
        "# num_ytids=2, num_segs=2, num_unique_labels=3, num_positive_labels=4\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
    )
    write(
        folder,
        {
            "class_labels_indices.csv": 'index,mid,display_name\n0,/m/09x0r,"Speech"\n'
            '1,/t/dd00088,"Domestic animals, pets"\n',
            "balanced_train_segments.csv": header
            + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
            '-0Gj8-vB1q4, 30.000, 40.000, "/m/09x0r"\n',
            "eval_segments.csv": header + '_aaaaaaaaa_, 0.000, 10.000, "/m/unknown,/m/09x0r"\n'
            'zzzzzzzzzzz, 0.000, 10.000, "/m/09x0r"\n',
        },
        ["audio/--PJHxphWEs_30.000.flac", "whole/Y-0Gj8-vB1q4.mp4", "eval/_aaaaaaaaa_.wav"],
    )


def vggsound(folder):
    write(
        folder,
        {
            "vggsound.csv": "---g-f_I2yQ,1,people marching,test\n"
            '--0PQM4-hqg,30,"waterfall burbling, loud",train\n'
        },
        ["video/---g-f_I2yQ_000001.mp4", "video/--0PQM4-hqg.mp4", "video/other_file_x.mp4"],
    )


def esc50(folder):
    write(
        folder,
        {
            "meta/esc50.csv": "filename,fold,target,category,esc10,src_file,take\n"
            "1-100032-A-0.wav,1,0,dog,True,100032,A\n"
            "2-100038-A-14.wav,2,14,chirping_birds,False,100038,A\n",
            "README.md": "",
            "requirements.txt": "numpy\n",
        },
        ["audio/1-100032-A-0.wav", "audio/2-100038-A-14.wav"],
    )


def fsd50k(folder):
    write(
        folder,
        {
            "FSD50K.ground_truth/dev.csv": "fname,labels,mids,split\n"
            '64760,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf",train\n'
            "16399,Rain,/m/06mb1,val\n",
            "FSD50K.ground_truth/eval.csv": "fname,labels,mids\n"
            '37199,"Rain,Water","/m/06mb1,/m/0838f"\n',
            "FSD50K.ground_truth/vocabulary.csv": "0,Accelerating,/m/07q2z82\n",
        },
        [
            "FSD50K.dev_audio/64760.wav",
            "FSD50K.dev_audio/16399.wav",
            "FSD50K.eval_audio/37199.wav",
        ],
    )


def listed(folder, dataset, fold=None):
    """Labels, split, group, and the stretch if there is one, by file; a ! in front if missing."""
    found = list_input(str(folder), IngestSettings(dataset=dataset, fold=fold))
    rows = {}
    for source in found.sources:
        assert source.label == (source.labels[0] if len(source.labels) == 1 else None)
        name = ("" if os.path.exists(source.path) else "!") + Path(source.path).name
        row = (source.labels, source.split, source.group)
        if source.start_seconds is not None:
            row += (source.start_seconds, source.end_seconds)
        rows[name] = row
    return rows, found.ignored


def test_ucf101(tmp_path):
    ucf101(tmp_path)
    assert listed(tmp_path, "ucf101") == (
        {
            "v_ApplyEyeMakeup_g08_c01.avi": (("ApplyEyeMakeup",), "train", "ApplyEyeMakeup_g08"),
            "!v_Archery_g08_c02": (("Archery",), "train", "Archery_g08"),
            "v_ApplyEyeMakeup_g01_c01.avi": (("ApplyEyeMakeup",), "test", "ApplyEyeMakeup_g01"),
        },
        {},
    )
    rows, _ = listed(tmp_path, "ucf101", fold=2)
    assert {name: row[1] for name, row in rows.items()} == {
        "v_ApplyEyeMakeup_g01_c01.avi": "train",
        "v_ApplyEyeMakeup_g08_c01.avi": "test",
    }


def test_hmdb51(tmp_path):
    hmdb51(tmp_path)
    assert listed(tmp_path, "hmdb51") == (
        {
            "a_brush_hair_u_0.avi": (("brush_hair",), "train", None),
            "#b'_[x]_brush_hair_u_1.avi": (("brush_hair",), "test", None),
            "d_wave_0.avi": (("wave",), "train", None),
        },
        {"not listed": 1},
    )
    write(tmp_path, {"lists/._wave_test_split3.txt": "none\0", "lists/.old/x_test_split3.txt": ""})
    assert listed(tmp_path, "hmdb51", 3)[0] == {"d_wave_0.avi": (("wave",), "test", None)}


def test_kinetics400_and_kinetics_sound(tmp_path):
    kinetics(tmp_path)
    rows, ignored = listed(tmp_path, "kinetics400")
    assert rows == {
        "---QUuC4vJs_000084_000094.mp4": (("playing guitar",), "train", None),
        "_4YTwq0-73Y_000000_000010.mp4": (("abseiling",), "train", None),
        "aaaaaaaaaaa.webm": (("singing",), "val", None, 5.0, 15.0),
        "!bbbbbbbbbbb_000000_000010": (("singing",), "val", None),
        "ccccccccccc_000001_000011.mp4": ((), "test", None),
    }
    assert ignored == {}
    sound, ignored = listed(tmp_path, "kinetics_sound")
    assert set(rows) - set(sound) == {
        "_4YTwq0-73Y_000000_000010.mp4",
        "ccccccccccc_000001_000011.mp4",
    }
    assert ignored == {"not listed": 2}
    assert len(KINETICS_SOUND_CLASSES) == 32


def test_audioset(tmp_path):
    audioset(tmp_path)
    rows, _ = listed(tmp_path, "audioset")
    assert rows == {
        "--PJHxphWEs_30.000.flac": (("Domestic animals, pets", "Speech"), "train", None),
        "Y-0Gj8-vB1q4.mp4": (("Speech",), "train", None, 30.0, 40.0),
        "_aaaaaaaaa_.wav": (("/m/unknown", "Speech"), "test", None, 0.0, 10.0),
        "!zzzzzzzzzzz": (("Speech",), "test", None, 0.0, 10.0),
    }


def test_vggsound(tmp_path):
    vggsound(tmp_path)
    assert listed(tmp_path, "vggsound") == (
        {
            "---g-f_I2yQ_000001.mp4": (("people marching",), "test", None),
            "--0PQM4-hqg.mp4": (("waterfall burbling, loud",), "train", None, 30.0, 40.0),
        },
        {"not listed": 1},
    )


@pytest.mark.parametrize(
    ("media", "expected"),
    [
        (["V_000030.mp4", "V_000050.mp4"], {"V_000030.mp4": ("harp",), "V_000050.mp4": ("dog",)}),
        (
            ["YV_30000_40000.mp4", "V_50.0.mp4"],
            {"YV_30000_40000.mp4": ("harp",), "V_50.0.mp4": ("dog",)},
        ),
        (["V.mp4", "V_000050.mp4"], {"V.mp4": ("harp", 30.0), "V_000050.mp4": ("dog",)}),
        (["V_000030.mp4"], {"V_000030.mp4": ("harp",), "!V": ("dog", 50.0)}),
        (["V.mp4"], {"V.mp4": ("harp", 30.0), "!V_000050": ("dog", 50.0)}),
    ],
)
def test_each_stretch_of_a_video_has_the_file_cut_to_it(tmp_path, media, expected):
    video = "abcdefghijk"
    table = f"{video},30,harp,train\n{video},50,dog,test\n"
    write(tmp_path, {"vggsound.csv": table}, [name.replace("V", video) for name in media])
    rows, ignored = listed(tmp_path, "vggsound")
    assert {
        name.replace(video, "V"): (*row[0], *row[3:4]) for name, row in rows.items()
    } == expected
    assert ignored == {}


def test_a_name_that_says_no_time_is_taken_where_a_video_has_one_file(tmp_path):
    texts = {"vggsound.csv": "abcdefghijk,30,harp,train\nabcdefghijl,50,dog,test\n"}
    write(tmp_path, texts, ["abcdefghijk_a.mp4", "abcdefghijl_a.mp4", "abcdefghijl_b.mp4"])
    assert set(listed(tmp_path, "vggsound")[0]) == {"abcdefghijk_a.mp4", "!abcdefghijl"}


def test_the_video_is_taken_where_its_sound_lies_beside_it(tmp_path):
    vggsound(tmp_path)
    write(tmp_path, {}, ["audio/---g-f_I2yQ_000001.wav", "video/--0PQM4-hqg.m4a"])
    rows, ignored = listed(tmp_path, "vggsound")
    assert set(rows) == {"---g-f_I2yQ_000001.mp4", "--0PQM4-hqg.mp4"}
    assert ignored == {"not listed": 1, SAME_NAME: 2}


def test_sound_is_taken_where_the_dataset_has_no_pictures(tmp_path):
    esc50(tmp_path)
    write(tmp_path, {}, ["a/1-100032-A-0.mp4", "more/2-100038-A-14.wav"])
    rows, ignored = listed(tmp_path, "esc50")
    assert set(rows) == {"1-100032-A-0.wav", "2-100038-A-14.wav"}
    assert ignored == {SAME_NAME: 2}


def test_pipes_of_a_published_dataset_are_counted(tmp_path):
    esc50(tmp_path)
    os.mkfifo(tmp_path / "pipe.wav")
    assert listed(tmp_path, "esc50")[1] == {"pipe": 1}


def test_esc50(tmp_path):
    esc50(tmp_path)
    rows, _ = listed(tmp_path, "esc50", fold=2)
    assert rows == {
        "1-100032-A-0.wav": (("dog",), "train", "100032"),
        "2-100038-A-14.wav": (("chirping_birds",), "test", "100038"),
    }
    assert listed(tmp_path, "esc50")[0]["1-100032-A-0.wav"][1] == "test"


def test_fsd50k(tmp_path):
    fsd50k(tmp_path)
    assert listed(tmp_path, "fsd50k")[0] == {
        "64760.wav": (("Electric_guitar", "Guitar", "Music"), "train", None),
        "16399.wav": (("Rain",), "val", None),
        "37199.wav": (("Rain", "Water"), "test", None),
    }


@pytest.mark.parametrize(
    ("dataset", "fold", "texts", "message"),
    [
        ("ucf101", None, {}, r"must hold trainlist01\.txt, but it does not"),
        ("ucf101", 4, {}, r"fold \(4\) must be at most 3 for ucf101"),
        ("fsd50k", 2, {}, r"fold \(2\) must be at most 1 for fsd50k"),
        ("hmdb51", None, {}, r"must hold CLASS_test_split1\.txt"),
        ("kinetics400", None, {}, r"must hold train\.csv or val\.csv"),
        ("audioset", None, {}, r"must hold eval_segments\.csv"),
        ("esc50", None, {"esc50.csv": "filename,fold\n"}, "must hold media of esc50, but has none"),
        ("esc50", None, {"esc50.csv": "file\na.wav\n"}, "not as esc50 has it: KeyError 'fold'"),
        ("vggsound", None, {"vggsound.csv": "a,1,b\n"}, "not as vggsound has it: ValueError"),
    ],
)
def test_folders_that_are_not_the_dataset_are_refused(tmp_path, dataset, fold, texts, message):
    write(tmp_path, texts)
    with pytest.raises(UserError, match=message):
        list_input(str(tmp_path), IngestSettings(dataset=dataset, fold=fold))


@pytest.mark.parametrize(
    ("dataset", "name"), [("esc50", "esc50.csv"), ("hmdb51", "wave_test_split1.txt")]
)
def test_a_list_that_cannot_be_read_is_named_once(tmp_path, dataset, name):
    with pytest.raises(UserError) as refused:
        list_input(str(tmp_path), IngestSettings(dataset=dataset))
    assert str(refused.value).startswith(f"input ({tmp_path}) must hold ")
    (tmp_path / name).write_bytes(b"\xff\xfe")
    with pytest.raises(UserError) as refused:
        list_input(str(tmp_path), IngestSettings(dataset=dataset))
    assert str(refused.value).startswith(f"list ({tmp_path}/{name}) cannot be read: 'utf-8' codec")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(UserError, match=r"cannot be read: No such file or directory"):
        list_input(str(tmp_path), IngestSettings(dataset=dataset))


def test_a_fold_needs_a_dataset_and_a_dataset_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"fold \(2\) must come with dataset"):
        IngestSettings(fold=2)
    with pytest.raises(UserError, match="must be a folder: it is to hold esc50"):
        list_input("s3://bucket/esc50", IngestSettings(dataset="esc50"))


def fill(folder, *, has_audio):
    """Makes media of the empty files, each another one."""
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if path.suffix in (".avi", ".mp4", ".webm"):
            waveform = tone(2.4, hertz=300 + 20 * number) if has_audio else None
            write_numbered(path.with_suffix(".mkv"), 60 + number, waveform=waveform)
            path.with_suffix(".mkv").replace(path)
        elif path.suffix in (".wav", ".flac"):
            made = path.with_suffix(".made.wav")
            write_media(made, waveform=tone(2.4, hertz=300 + 20 * number), codecs=("", "pcm_s16le"))
            made.replace(path)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    ("dataset", "make", "accepted", "rejected", "kinds"),
    [
        ("ucf101", ucf101, 2, 1, {(True, True)}),
        ("hmdb51", hmdb51, 3, 0, {(True, False)}),
        ("kinetics400", kinetics, 4, 1, {(True, True)}),
        ("kinetics_sound", kinetics, 2, 1, {(True, True)}),
        ("audioset", audioset, 3, 1, {(True, True), (False, True)}),
        ("vggsound", vggsound, 2, 0, {(True, True)}),
        ("esc50", esc50, 2, 0, {(False, True)}),
        ("fsd50k", fsd50k, 3, 0, {(False, True)}),
    ],
)
def test_a_dataset_becomes_clips(tmp_path, local_ray, dataset, make, accepted, rejected, kinds):
    make(tmp_path / "in")
    fill(tmp_path / "in", has_audio=dataset != "hmdb51")
    settings = IngestSettings(dataset=dataset, short_side=32, segment_seconds=2.0)
    folder = str(tmp_path / "in")
    summary = ingest(folder, str(tmp_path / "clips"), settings, on_progress=lambda *_: None)
    assert (summary.accepted, summary.rejected) == (accepted, rejected)
    clips = ClipDataset.open(tmp_path / "clips")
    rows = clips.small_columns(["num_frames", "has_audio", "source", "labels", "split"]).to_pylist()
    assert {(row["num_frames"] > 0, row["has_audio"]) for row in rows} == kinds
    expected = {s.uri: s for s in list_input(folder, settings).sources}
    for row in rows:
        source = expected[row["source"]]
        assert (tuple(row["labels"]), row["split"]) == (source.labels, source.split)
    table = pq.read_table(tmp_path / "clips/clips", columns=["group"])
    assert (table["group"].null_count == 0) == (dataset in ("ucf101", "esc50"))
