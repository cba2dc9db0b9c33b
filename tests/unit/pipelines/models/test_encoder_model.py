"""A registered encoder by itself: same numbers as evaluation, from anything, anywhere."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import scoring_server
from mlflow.types import DataType
from mlflow.types.schema import Array as MlflowArray

from pipelines.media.decode import decode_segments
from pipelines.media.windows import audio_windows, video_windows
from pipelines.models.encoder_inputs import resample_waveform, visible_frames
from pipelines.models.input_decoder import InputDecoder
from pipelines.registry.package import save_package, stage
from tests.helpers.encoders import CLIPS, WIDTH, example_encoder, write_media
from tests.helpers.media import tone
from tests.helpers.media import write_media as write_wave
from xkd_core.config import MethodConfig
from xkd_core.views.log_mel import LogMel
from xkd_core.views.views import ClipBatch, plain_views

ISOLATED = """
import importlib.util, json, os, sys
sys.path[:] = [path for path in sys.path if path not in ("", os.environ["CHECKOUT"])]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]
for name in ("xkd_core", "pipelines"):
    assert importlib.util.find_spec(name) is None, f"{name} can be imported without the model"
import mlflow
films = {"path": sys.argv[3:]}
embeddings = [mlflow.pyfunc.load_model(path).predict(films).tolist() for path in sys.argv[1:3]]
json.dump({
    "embeddings": embeddings,
    "files": sorted(
        module.__file__ for name, module in sys.modules.items() if name.startswith("xkd_")
    ),
    "cluster": [name for name in ("ray", "sklearn", "boto3") if name in sys.modules],
    "own": [name for name in ("pipelines", "xkd_core") if name in sys.modules],
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Both encoders as MLflow models on disk."""
    folders = {}
    for modality in ("video", "audio"):
        encoder, info = example_encoder(modality)
        staged = tmp_path_factory.mktemp(f"staged-{modality}")
        stage(encoder, info, staged)
        folders[modality] = tmp_path_factory.mktemp("models") / modality
        save_package(staged, info, "# card\n", folders[modality], Model())
    return folders


@pytest.fixture(scope="module")
def models(packages):
    return {name: mlflow.pyfunc.load_model(str(folder)) for name, folder in packages.items()}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Three seconds, two segments; and one second with a single one."""
    folder = tmp_path_factory.mktemp("films")
    return [
        write_media(folder / "long.mkv", seconds=3.0, seed=1),
        write_media(folder / "short.mkv", seconds=1.25, seed=2),
    ]


DECODING = {
    "segment_seconds": CLIPS.segment_seconds,
    "min_segment_seconds": CLIPS.min_segment_seconds,
    "frame_rate": 8.0,
    "short_side": CLIPS.short_side,
    "sample_rate": 4_000,
}


def children(pid="self"):
    """Processes that a process started."""
    return [
        child
        for thread in os.listdir(f"/proc/{pid}/task")
        for child in open(f"/proc/{pid}/task/{thread}/children").read().split()
    ]


def decoded(path):
    return list(
        decode_segments(
            str(path),
            segment_seconds=CLIPS.segment_seconds,
            min_segment_seconds=CLIPS.min_segment_seconds,
            frame_rate=8.0,
            short_side=CLIPS.short_side,
            sample_rate=4_000,
        )
    )


def as_evaluated(modality, path):
    """What evaluation computes: views of windows, averaged in segments, here over segments too."""
    encoder, info = example_encoder(modality)
    log_mel = LogMel(info.model.audio)
    means = []
    for segment in decoded(path):
        videos = video_windows(segment.frames, 8, CLIPS.num_windows)
        sounds = audio_windows(segment.waveform, 4_000, CLIPS.num_windows)
        frames = torch.from_numpy(np.stack(videos))
        batch = ClipBatch(
            frames,
            torch.full((len(frames),), frames.shape[2]),
            torch.full((len(frames),), frames.shape[3]),
            torch.from_numpy(np.stack(sounds)),
        )
        views = plain_views(batch, MethodConfig(model=info.model), log_mel)
        with torch.no_grad():
            embeddings = encoder.embed(views[0] if modality == "video" else views[1])
        means.append(embeddings.mean(dim=0))
    return torch.stack(means).mean(dim=0).numpy()


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_embeddings_are_those_of_evaluation(models, films, modality):
    expected = np.stack([as_evaluated(modality, film) for film in films])
    embeddings = models[modality].predict({"path": [str(film) for film in films]})
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-3


def test_it_loads_without_the_checkout_and_without_unpickling(packages, films, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "CHECKOUT": str(Path(__file__).parents[4]),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", ISOLATED, *map(str, packages.values()), *map(str, films)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["files"]
    folders = tuple(str(folder) for folder in packages.values())
    assert all(file.startswith(folders) for file in answer["files"])
    assert answer["cluster"] == answer["own"] == []
    for modality, embeddings in zip(packages, answer["embeddings"], strict=True):
        expected = np.stack([as_evaluated(modality, film) for film in films])
        np.testing.assert_allclose(embeddings, expected, atol=1e-4)


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_paths_bytes_and_arrays_of_a_film_give_the_same(models, films, modality):
    model, film = models[modality], films[1]
    (segment,) = decoded(film)
    array, column, rate = {
        "video": (segment.frames, "frames", {"frame_rate": 8}),
        "audio": (segment.waveform, "waveform", {"sample_rate": 4_000}),
    }[modality]
    expected = model.predict({"path": [str(film)]})
    for inputs in (
        pd.DataFrame({"path": [str(film)]}),
        [{"path": str(film)}],
        {"bytes": [film.read_bytes()]},
        {"bytes": ["data:video/mp4;base64," + base64.b64encode(film.read_bytes()).decode()]},
        {column: [array], **{name: [value] for name, value in rate.items()}},
        {column: [array.tolist()]},
        pd.DataFrame({column: [array]}),
    ):
        np.testing.assert_allclose(model.predict(inputs), expected, atol=1e-6)


@pytest.mark.parametrize("seconds", [0.125, 0.375])
def test_an_input_shorter_than_a_segment_of_training_is_embedded(models, tmp_path, seconds):
    film = write_media(tmp_path / "short.mkv", seconds=seconds, seed=3)
    (segment,) = decode_segments(
        str(film),
        segment_seconds=CLIPS.segment_seconds,
        min_segment_seconds=0.01,
        frame_rate=8.0,
        short_side=CLIPS.short_side,
        sample_rate=4_000,
    )
    assert len(segment.waveform) < CLIPS.min_segment_seconds * 4_000
    for modality, array in {
        "video": {"frames": [segment.frames]},
        "audio": {"waveform": [segment.waveform]},
    }.items():
        embedding = models[modality].predict({"path": [str(film)]})
        assert embedding.shape == (1, WIDTH)
        np.testing.assert_allclose(embedding, models[modality].predict(array), atol=1e-6)


def test_an_array_of_many_segments_is_cut_as_a_film_is(models, films):
    frames = np.concatenate([segment.frames for segment in decoded(films[0])])
    expected = models["video"].predict({"path": [str(films[0])]})
    np.testing.assert_allclose(models["video"].predict({"frames": [frames]}), expected, atol=1e-6)


def test_batches_do_not_change_embeddings_but_windows_do(models, films):
    inputs = {"path": [str(film) for film in films]}
    expected = models["video"].predict(inputs)
    for batch_size in (1, 3):
        embeddings = models["video"].predict(inputs, params={"batch_size": batch_size})
        np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    other = models["video"].predict(inputs, params={"num_windows": 1})
    assert np.abs(other - expected).max() > 1e-4


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_the_input_example_can_be_embedded(models, modality):
    embeddings = models[modality].predict(models[modality].input_example)
    assert embeddings.shape == (1, WIDTH)
    assert np.isfinite(embeddings).all()


def test_a_package_holds_nothing_that_is_pickled_and_only_the_code_it_needs(packages):
    files = {path.relative_to(packages["video"]) for path in packages["video"].rglob("*.*")}
    # Python compiles the code beside it when other tests load it.
    files = {path for path in files if path.parent.name != "__pycache__"}
    assert {path.suffix for path in files} == {
        ".json", ".md", ".py", ".safetensors", ".txt", ".yaml",
    }  # fmt: skip
    (code,) = (packages["video"] / "code").iterdir()
    pipelines = {path.parts[3] for path in files if path.parts[1:3] == (code.name, "pipelines")}
    assert {"models", "media", "redaction.py"} <= pipelines
    assert not pipelines & {"config", "ingest", "registry", "tracking"}


@pytest.mark.parametrize(
    ("modality", "inputs", "message"),
    [
        ("video", {"path": ["absent.mkv"]}, r"input 0 \(absent.mkv\) cannot be decoded: unreada"),
        ("video", {"bytes": [b"no media"]}, r"input 0 cannot be decoded: not_media"),
        (
            "video",
            {"sound": ["x"]},
            r"inputs have no column that the model knows: sound; known: path",
        ),
        ("video", {"frame_rate": [8.0]}, r"input 0 must have exactly one of the columns path"),
        ("video", {"frames": [np.zeros((4, 8, 8, 3))]}, r"frames must be .* type uint8 .* float64"),
        ("video", {"frames": [[[1], [2]]]}, r"frames must be .* shape \(T, H, W, 3\), .* \(2, 1\)"),
        ("video", {"bytes": ["%%%"]}, r"input 0: bytes must be base64 text, but it is not"),
        ("video", {"bytes": [3]}, r"input 0: bytes must be the bytes .* of type int"),
        ("video", {"path": ["a", "b"], "frame_rate": ["1"]}, r"columns must be equally long"),
        ("audio", {"waveform": [[1, 99_999]]}, r"waveform must be .* type int16"),
        ("audio", {"waveform": [[1, 2]], "sample_rate": [-1]}, r"sample_rate \(-1\) must be a num"),
    ],
)
def test_an_input_that_cannot_be_used_is_named(models, modality, inputs, message):
    with pytest.raises(ValueError, match=message):
        models[modality].predict(inputs)


def test_a_format_beside_the_common_ones_is_refused_unless_it_is_asked_for(models, tmp_path):
    film = write_wave(tmp_path / "sound.aiff", waveform=tone(2.0), codecs=("", "pcm_s16be"))
    with pytest.raises(ValueError, match=r"format_not_allowed, aiff .* the parameter formats=all"):
        models["audio"].predict({"path": [str(film)]})
    embeddings = models["audio"].predict({"path": [str(film)]}, params={"formats": "all"})
    assert embeddings.shape == (1, WIDTH)
    with pytest.raises(ValueError, match=r"formats \(every\) must be common or all"):
        models["audio"].predict({"path": [str(film)]}, params={"formats": "every"})


def test_media_are_decoded_in_another_process_of_each_call(films):
    lender = InputDecoder()
    before = set(children())
    calls = []
    for _ in range(2):
        with lender.lent() as decode:
            segments = decode(str(films[0]), **DECODING)
            next(segments)
            (template,) = set(children()) - before
            calls.append(set(children(template)))  # and the next one, forked ahead
    assert calls[1]
    assert calls[0] - calls[1]
    with lender.lent() as one, lender.lent() as other:  # two calls at a time
        assert len(list(one(str(films[0]), **DECODING))) == len(
            list(other(films[0].read_bytes(), **DECODING))
        )


def test_a_generator_that_is_left_does_not_disturb_the_next_call(films):
    """An error keeps it alive, and it is closed while another call decodes."""
    lender = InputDecoder()
    with lender.lent() as decode:
        left = decode(str(films[0]), **DECODING)
        next(left)
    with lender.lent() as decode:
        segments = decode(str(films[0]), **DECODING)
        next(segments)
        left.close()
        assert len(list(segments)) == 1


def test_where_no_process_can_be_started_the_model_decodes_itself_and_says_so_once(
    films, monkeypatch, caplog
):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    lender = InputDecoder()
    for source in (str(films[0]), films[0].read_bytes()):
        with lender.lent() as decode:
            assert len(list(decode(source, **DECODING))) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "media are decoded in this process (No such file or directory): a hostile file could do "
        "what it can"
    ]


def test_a_server_answers_with_the_input_and_not_with_its_own_files(models, films):
    records = [{"path": str(films[0])}, {"path": "/nowhere.mp4"}]
    request = json.dumps({"dataframe_records": records})
    schema = models["video"].metadata.get_input_schema()
    with pytest.raises(MlflowException) as caught:
        scoring_server.invocations(request, "application/json", models["video"], schema)
    answer = json.loads(caught.value.serialize_as_json())
    assert answer["error_code"] == "BAD_REQUEST"
    assert "input 1 (/nowhere.mp4) cannot be decoded" in answer["message"]
    assert "stack_trace" not in answer
    assert ".py" not in answer["message"]


def invoke(model, body, content_type="application/json"):
    """What MLflow's server answers."""
    text = body if isinstance(body, str) else json.dumps(body)
    schema = model.metadata.get_input_schema()
    return json.loads(scoring_server.invocations(text, content_type, model, schema).response)[
        "predictions"
    ]


def test_a_server_takes_every_form_of_request(models, films):
    model, path = models["video"], str(films[1])
    text = base64.b64encode(films[1].read_bytes()).decode()
    expected = model.predict({"path": [path]}).tolist()
    for body in (
        {"dataframe_records": [{"path": path}]},
        {"dataframe_records": [{"bytes": text}]},
        {"dataframe_split": {"columns": ["path"], "data": [[path]]}},
        {"dataframe_split": {"columns": ["bytes"], "data": [[text]]}},
        {"inputs": {"path": [path]}},
        {"inputs": [{"path": path}]},
        {"inputs": {"bytes": [text]}},
        {"instances": [{"bytes": text}]},
    ):
        assert invoke(model, body) == expected, body
    for table in (
        f"path\n{path}\n",
        f"path,frame_rate\n{path},\n",
        f"path,frame_rate\n{path},25.0\n",
        f"bytes\n{text}\n",
    ):
        assert invoke(model, table, "text/csv") == expected, table
    mixed = {"dataframe_records": [{"bytes": text}, {"path": path}]}
    assert invoke(model, mixed) == invoke(model, f"path,bytes\n,{text}\n{path},\n", "text/csv")
    assert invoke(model, {"inputs": {"path": [path, path]}}) == expected * 2


def test_a_server_takes_sounds_of_different_lengths(models):
    sounds = [tone(1.0, 4_000).tolist(), tone(0.2, 4_000).tolist()]
    expected = models["audio"].predict({"waveform": sounds}).tolist()
    for body in (
        {"inputs": {"waveform": sounds, "sample_rate": [4_000, 4_000]}},
        {"dataframe_records": [{"waveform": sound} for sound in sounds]},
        {"dataframe_split": {"columns": ["waveform"], "data": [[sound] for sound in sounds]}},
    ):
        assert invoke(models["audio"], body) == expected


def test_one_bad_input_does_not_cost_the_batch_if_the_caller_says_so(models, films, tmp_path):
    silent = write_media(tmp_path / "silent.mkv", sound=False)
    inputs = {"path": ["/nowhere.wav", str(films[0]), str(silent), str(films[1])]}
    table = models["audio"].predict(inputs, params={"on_error": "null"})
    expected = models["audio"].predict({"path": [str(film) for film in films]})
    assert np.array_equal(np.array(table["embedding"][[1, 3]].tolist(), np.float32), expected)
    assert table["embedding"][[0, 2]].tolist() == [None, None]
    errors = table["error"].tolist()
    assert errors[1] is errors[3] is None
    assert errors[0].startswith("input 0 (/nowhere.wav) cannot be decoded: unreadable")
    assert errors[2].startswith(f"input 2 ({silent}) has no sound")
    body = {"dataframe_records": [{"path": path} for path in inputs["path"]]}
    served = invoke(models["audio"], {**body, "params": {"on_error": "null"}})
    assert served == table.to_dict("records")
    with pytest.raises(ValueError, match=r"on_error \(skip\) must be raise or null"):
        models["audio"].predict(inputs, params={"on_error": "skip"})


def test_an_input_that_fails_after_its_first_segment_has_no_embedding(models, films, monkeypatch):
    def breaks(*_arguments):
        for number, segment in enumerate(decoded(films[0])):
            if number:
                raise ValueError("input 0 breaks")
            yield segment.frames

    module = sys.modules[type(models["video"].unwrap_python_model()).__module__]
    monkeypatch.setattr(module, "read_segments", breaks)
    for batch_size in (1, 8):
        params = {"on_error": "null", "batch_size": batch_size}
        table = models["video"].predict({"path": [str(films[0])]}, params=params)
        assert table.to_dict("records") == [{"embedding": None, "error": "input 0 breaks"}]


def test_what_else_fails_is_an_error_of_mlflow_without_paths(models, films, monkeypatch):
    def fails(*_arguments):
        raise OSError(28, "No space left", "/srv/secret")

    monkeypatch.setattr(models["video"].unwrap_python_model(), "_embed", fails)
    with pytest.raises(MlflowException) as caught:
        models["video"].predict({"path": [str(films[1])]})
    answer = json.loads(caught.value.serialize_as_json())
    assert answer["error_code"] == "INTERNAL_ERROR"
    reason = "the encoder failed with OSError; the log of its process says why"
    assert answer["message"].endswith(reason)
    assert "secret" not in json.dumps(answer)
    assert "stack_trace" not in answer


def test_a_message_does_not_repeat_the_input(models):
    text = base64.b64encode(b"no media" * 10_000).decode()
    with pytest.raises(MlflowException) as caught:
        invoke(models["video"], {"inputs": {"bytes": [text]}})
    assert len(caught.value.serialize_as_json()) < 200


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_missing_values_of_pandas_are_no_values(models, films, modality):
    model, film = models[modality], films[1]
    expected = model.predict({"path": [str(film)]})
    for missing in (None, pd.NA, pd.NaT, float("nan"), np.float32("nan")):
        table = pd.DataFrame(
            {"path": [str(film), missing], "bytes": [missing, film.read_bytes()]}, dtype=object
        )
        np.testing.assert_array_equal(model.predict(table), np.concatenate([expected, expected]))
    assert model.predict(pd.DataFrame({"path": []})).shape == (0, WIDTH)


def test_paths_and_tensors_are_inputs(models, films):
    (segment,) = decoded(films[1])
    expected = models["video"].predict({"path": [str(films[1])]})
    for inputs in (
        {"path": [films[1]]},
        [{"path": films[1]}],
        {"frames": [torch.from_numpy(segment.frames.copy())]},
        {"frames": segment.frames[None]},
    ):
        np.testing.assert_allclose(models["video"].predict(inputs), expected, atol=1e-6)


@pytest.fixture
def own_defaults():
    """Undoes what a test sets in torch."""
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("modality", ["video", "audio"])
@pytest.mark.parametrize("setting", [torch.float64, torch.float16, torch.bfloat16, "meta"])
def test_torchs_defaults_do_not_matter(packages, models, films, own_defaults, modality, setting):
    inputs = {"path": [str(films[0])]}
    expected = models[modality].predict(inputs)
    if setting == "meta":
        torch.set_default_device(setting)
    else:
        torch.set_default_dtype(setting)
    state = torch.random.get_rng_state()
    loaded = mlflow.pyfunc.load_model(str(packages[modality]))
    assert torch.equal(torch.random.get_rng_state(), state)
    for model in (models[modality], loaded):
        np.testing.assert_array_equal(model.predict(inputs), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        np.testing.assert_array_equal(loaded.predict(inputs), expected)
    if modality == "audio":
        resampled = loaded.predict({"waveform": [tone(0.5)], "sample_rate": [48_000]})
        assert np.isfinite(resampled).all()


def test_spark_knows_the_type_of_an_embedding(models):
    (output,) = models["video"].metadata.get_output_schema().inputs
    assert output.type == MlflowArray(DataType.float)
    types = pytest.importorskip("pyspark.sql.types", reason="pyspark is not installed")
    found = mlflow.pyfunc._infer_spark_udf_return_type(models["video"].metadata.get_output_schema())
    assert found == types.ArrayType(types.FloatType())


def test_a_spoken_digit_as_a_file_is_embedded_as_its_samples_are(models, tmp_path):
    samples = tone(0.45, 4_000)
    codecs = ("", "pcm_s16le")
    file = write_wave(tmp_path / "digit.wav", waveform=samples, sample_rate=4_000, codecs=codecs)
    embeddings = models["audio"].predict({"path": [str(file)]})
    assert embeddings.shape == (1, WIDTH)
    expected = models["audio"].predict({"waveform": [samples]})
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)


@pytest.mark.parametrize(("modality", "missing"), [("video", "picture"), ("audio", "sound")])
def test_a_film_without_the_modality_is_named(models, tmp_path, modality, missing):
    sides = {"picture": modality != "video", "sound": modality != "audio"}
    film = write_media(tmp_path / "half.mkv", **sides)
    with pytest.raises(ValueError, match=rf"half.mkv\) has no {missing}, which the {modality}"):
        models[modality].predict({"path": [str(film)]})


def test_resampled_frames_are_those_seen_at_the_time():
    assert visible_frames(6, 24.0, 8.0).tolist() == [0, 3]
    assert visible_frames(6, 4.0, 8.0).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    for rate in (8.0, 24.0, 25.0, 30_000 / 1001):
        assert visible_frames(2_000, rate, rate).tolist() == list(range(2_000))


def test_a_resampled_tone_is_the_same_tone():
    def tone(rate):
        return (9_000 * np.sin(2 * np.pi * 200 * np.arange(rate) / rate)).astype(np.int16)

    resampled = resample_waveform(tone(8_000), 8_000, 4_000)
    assert resampled.dtype == np.int16
    np.testing.assert_allclose(resampled[100:-100], tone(4_000)[100:-100], atol=60)
