"""MLflow's server: a body that cannot be read is answered in one line that names the reason."""

import json
import re

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc import scoring_server
from starlette.testclient import TestClient

from pipelines.models.encoder_inputs import resample_waveform
from pipelines.registry.package import save_package, stage
from tests.helpers.encoders import WIDTH, example_encoder, write_media
from tests.helpers.media import tone

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return str(write_media(tmp_path_factory.mktemp("films") / "film.mkv", seconds=1.25))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    found = {}
    for modality in ("video", "audio"):
        encoder, info = example_encoder(modality)
        staged = tmp_path_factory.mktemp("staged")
        stage(encoder, info, staged)
        folder = tmp_path_factory.mktemp("models") / modality
        save_package(staged, info, "# card\n", folder, Model())
        found[modality] = mlflow.pyfunc.load_model(str(folder))
    return found


@pytest.fixture(scope="module")
def servers(models):
    return {
        modality: TestClient(scoring_server.init(model), raise_server_exceptions=False)
        for modality, model in models.items()
    }


def post(server, body, kind=JSON):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.post("/invocations", content=content, headers={"content-type": kind})


FORMS = "dataframe_records, dataframe_split, inputs, instances"
MALFORMED = [
    (CSV, b"", "the request is no CSV table: No columns"),
    (CSV, b'path\n"open\n', "the request is no CSV table: EOF inside string"),
    (CSV, b"path,frame_rate\na,1,2,3\n", "no CSV table: Expected 2 fields in line 2, saw 4"),
    (CSV, b"path\na\nb,c,d\n", "no CSV table: Expected 1 fields in line 3, saw 3"),
    (CSV, b"\xff\xfe\x00", "the request is no CSV table: 'utf-8' codec can't decode"),
    (CSV, b"sound\nx\n", "inputs have no column that the model knows: sound; known: path, bytes"),
    (CSV, b"path,path\na,b\n", "the request names a column twice: path, path"),
    (CSV, b"bytes\n%%%\n", "input 0: bytes must be base64 text"),
    (PARQUET, b"junk", "the request cannot be read: "),
    (JSON, b"", "the request is no JSON: Expecting value: line 1 column 1"),
    (JSON, b"{", "the request is no JSON: Expecting property name"),
    (JSON, b"\xff", "the request is no JSON: 'utf-8' codec"),
    (JSON, b"[" * 100_000, "the request is no JSON that can be read: it nests too deeply"),
    (JSON, [], f"must be an object with one of {FORMS}, not a list"),
    (JSON, None, "not null"),
    (JSON, {}, f"exactly one of {FORMS}, but has none of them"),
    (JSON, {"inputs": [], "instances": []}, "but has inputs and instances"),
    (JSON, {"messages": [{"role": "user"}]}, "but has none of them"),
    (JSON, {"dataframe_records": {}}, "dataframe_records must be a list of objects"),
    (JSON, {"dataframe_records": []}, "dataframe_records holds no input"),
    (JSON, {"dataframe_records": [{"path": "a"}, 3]}, "input 1 must be an object such as"),
    (JSON, {"dataframe_records": [{"x": 1}]}, "no column that the model knows: x; known: path"),
    (JSON, {"dataframe_records": [{"path": 3}]}, "input 0: path must be a string, but is of"),
    (JSON, {"dataframe_records": [{"path": "\ud800"}]}, "input 0: path is no valid Unicode text"),
    (JSON, {"dataframe_records": [{"bytes": {"b": 1}}]}, "input 0: bytes must be the bytes of"),
    (JSON, {"dataframe_records": [{"frames": {"a": 1}}]}, "input 0: frames must be a list of"),
    (JSON, {"dataframe_split": []}, "dataframe_split must be an object such as"),
    (JSON, {"dataframe_split": {"data": [["a"]]}}, "dataframe_split must be an object such as"),
    (JSON, {"dataframe_split": {"columns": [["path"]], "data": []}}, "must be different strings"),
    (JSON, {"dataframe_split": {"columns": ["path"], "data": ["a"]}}, "input 0 must be a list"),
    (
        JSON,
        {"dataframe_split": {"columns": ["path"], "data": [["a"], ["a", "b"]]}},
        "dataframe_split: input 1 has 2 values for 1 columns",
    ),
    (JSON, {"inputs": "a"}, "inputs must be a list of objects"),
    (JSON, {"inputs": {"path": ["a", "b"], "frame_rate": [1]}}, "columns must be equally long"),
    (JSON, {"inputs": {"path": {"a": "b"}}}, "input 0: path must be a string, but is of type dict"),
    (JSON, {"instances": [{"path": "FILM"}, {"x": 2}]}, "input 1 must have exactly one of the"),
    (JSON, {"instances": [{"path": "FILM"}, {"bytes": "x"}]}, "input 1: bytes must be base64"),
    (JSON, {"inputs": {"path": ["a"]}, "params": 3}, "params must be an object, not a number"),
    (JSON, {"inputs": {"path": ["a"]}, "params": {"x": 1}}, "params: x is unknown; parameters: b"),
    (
        JSON,
        {"inputs": {"path": ["a"]}, "params": {"batch_size": None}},
        "params: batch_size must be an integer, not null",
    ),
    (
        JSON,
        {"inputs": {"path": ["a"]}, "params": {"num_windows": 10**9}},
        r"num_windows \(1000000000\) must be an integer from 1 to 1000",
    ),
]


@pytest.mark.parametrize(("kind", "body", "message"), MALFORMED)
def test_a_malformed_body_is_named_in_one_line(servers, film, kind, body, message):
    if not isinstance(body, bytes):
        body = json.dumps(body).replace("FILM", film).encode()
    answer = post(servers["video"], body, kind)
    assert answer.status_code == 400
    values = answer.json()
    assert values["error_code"] == "BAD_REQUEST"
    assert re.search(message, values["message"]), values["message"]
    assert "stack_trace" not in values
    assert "\n" not in values["message"]
    assert ".py" not in values["message"]
    assert len(values["message"]) < 400


@pytest.mark.parametrize("headers", [{}, {"content-type": ""}, {"content-type": "video/mp4"}])
def test_another_content_type_is_refused(servers, headers):
    answer = servers["video"].post("/invocations", content=b"x", headers=headers)
    assert answer.status_code == 415
    assert "only supports the following content types" in answer.text


def test_rows_of_instances_stay_rows(servers, models, film):
    body = {"instances": [{"path": film}, {"path": film, "frame_rate": 4}, {"path": film}]}
    expected = models["video"].predict({"path": [film]})[0]
    found = post(servers["video"], body).json()["predictions"]
    np.testing.assert_allclose(found, [expected] * 3, atol=1e-6)
    one = post(servers["video"], {"inputs": {"path": film}}).json()["predictions"]
    np.testing.assert_allclose(one, [expected], atol=1e-6)


@pytest.mark.parametrize(
    ("modality", "row", "message"),
    [
        ("audio", {"waveform": [1] * 900, "sample_rate": 1e12}, r"sample_rate .* from 100 to 1,0"),
        ("audio", {"waveform": [1] * 900, "sample_rate": 1e-9}, r"sample_rate \(1e-09\) must be"),
        ("video", {"frames": [[[[1, 2, 3]]]], "frame_rate": 1e-12}, r"frame_rate \(1e-12\) must"),
        ("video", {"frames": [[[[1, 2, 3]]]] * 500, "frame_rate": 0.01}, "of 50,000 s must not be"),
    ],
)
def test_a_rate_that_would_take_all_memory_is_refused(models, modality, row, message):
    with pytest.raises(ValueError, match=message):
        models[modality].predict([row])


def test_a_low_rate_repeats_frames_segment_by_segment(models):
    """Two frames of 100 s each: 134 segments, each as if its frame were a film of its own."""
    frames = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (30, 200)])
    inputs = {"frames": [frames], "frame_rate": [0.01]}
    alone = models["video"].predict({"frames": [frames[:1].repeat(8, 0), frames[1:].repeat(8, 0)]})
    found = models["video"].predict(inputs, params={"num_windows": 1, "batch_size": 64})
    assert found.shape == (1, WIDTH)
    low, high = np.sort(alone, axis=0)
    assert ((found[0] > low - 1e-3) & (found[0] < high + 1e-3)).all()


def test_rates_without_a_common_divisor_are_resampled_too():
    """In lowest terms their filter would have 700 million coefficients."""
    found = resample_waveform(tone(1.0, 44_101), 44_101, 16_000)
    assert abs(len(found) - 16_000) <= 1
    expected = resample_waveform(tone(1.0, 44_100), 44_100, 16_000)
    length = min(len(found), len(expected))
    error = found[:length].astype(float) - expected[:length]
    assert np.sqrt(np.mean(error**2)) < 0.02 * np.sqrt(np.mean(expected.astype(float) ** 2))


def test_other_models_are_served_as_before(models, tmp_path):
    assert models
    code = tmp_path / "length.py"
    code.write_text(
        "import mlflow\n"
        "class Length(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input, params=None):\n"
        "        return [len(model_input)]\n"
        "mlflow.models.set_model(Length())\n"
    )
    signature = mlflow.models.infer_signature(pd.DataFrame({"a": [1]}), [1])
    mlflow.pyfunc.save_model(
        str(tmp_path / "model"), python_model=str(code), signature=signature, pip_requirements=[]
    )
    server = TestClient(scoring_server.init(mlflow.pyfunc.load_model(str(tmp_path / "model"))))
    assert post(server, {"dataframe_records": [{"a": 1}]}).json() == {"predictions": [1]}
    assert "Received a list" in post(server, []).json()["message"]


FRAMES = np.random.default_rng(0).integers(0, 255, (2, 8, 24, 32, 3)).astype(np.uint8)
SOUNDS = np.random.default_rng(0).integers(-99, 99, (2, 4_000)).astype(np.int16)


@pytest.mark.parametrize("rate", [8, 8.0, np.array([8.0, 8.0]), torch.tensor([8, 8]), [8, 8]])
def test_a_tensor_is_a_column_of_its_parts(models, rate):
    tensor = torch.from_numpy(FRAMES)
    expected = models["video"].predict({"frames": list(FRAMES), "frame_rate": [8.0, 8.0]})
    found = models["video"].predict({"frames": tensor, "frame_rate": rate})
    np.testing.assert_allclose(found, expected, atol=1e-6)
    records = models["video"].predict([{"frames": one, "frame_rate": 8.0} for one in tensor])
    np.testing.assert_allclose(records, expected, atol=1e-6)
    waves = torch.from_numpy(SOUNDS).requires_grad_(False)
    one = models["audio"].predict({"waveform": waves})
    np.testing.assert_allclose(one, models["audio"].predict({"waveform": list(SOUNDS)}), atol=1e-6)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"frames": torch.zeros(8, 24, 32, 3, dtype=torch.uint8)}, "input 0: frames must be a li"),
        ({"frames": torch.zeros(2, 8, 24, 32, 3)}, "this one is float32 of shape"),
        ({"frames": torch.zeros(2, 8, 24, 32, 3, dtype=torch.bfloat16)}, "this one is float32"),
        ({"frames": torch.tensor(3)}, "input 0: frames must be a list of arrays"),
        (FRAMES, "no column that the model knows: none; known: path, bytes, frames, frame_rate"),
        (torch.from_numpy(FRAMES), "no column that the model knows: none"),
        (list(FRAMES), "no column that the model knows: none"),
        (SOUNDS, "no column that the model knows: none"),
        (pd.DataFrame(SOUNDS), "no column that the model knows: none"),
        (pd.DataFrame(SOUNDS).add_prefix("s"), "knows: s0, s1, .*, s9 and 3990 more; known: path"),
        ({"picture": FRAMES}, "no column that the model knows: picture"),
        ([{"picture": FRAMES}], "no column that the model knows: picture"),
        ("film.mp4", 'no column .*; an example: {"path": \\["FILE"\\]}'),
        (["film.mp4"], "no column that the model knows: none"),
        (None, "no column that the model knows: none"),
        (3, "no column that the model knows: none"),
        ((row for row in FRAMES), "no column that the model knows: none"),
        ({"path": {"film.mp4"}}, "suggests a DataFrame input"),
        ({"path": ["a", "b"], "frame_rate": [1]}, "."),
        ({"frames": {"a": FRAMES}}, "input 0: frames must be"),
    ],
)
def test_what_cannot_be_a_table_is_refused_in_one_short_line(models, data, message):
    with pytest.raises(MlflowException, match=message) as caught:
        models["video"].predict(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
