"""Every way to use the folder of a model gives the same embeddings, where there is no checkout."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from mlflow.models import Model
from safetensors.torch import load_file

from pipelines.models.encoder_module import load_module
from pipelines.paths import PACKAGES
from pipelines.registry.package import save_package, stage
from tests.helpers.encoders import WIDTH, example_encoder
from tests.helpers.isolated import run_isolated

COLUMN = {"video": "frames", "audio": "waveform"}
MODALITIES = ("video", "audio")


def needs(*packages, extra):
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"{', '.join(missing)} not installed: xkd[{extra}]"
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each encoder, as a registry keeps it."""
    found = {}
    for modality in MODALITIES:
        encoder, info = example_encoder(modality)
        staged = tmp_path_factory.mktemp(f"staged-{modality}")
        stage(encoder, info, staged)
        found[modality] = tmp_path_factory.mktemp("models") / modality
        save_package(staged, info, "# card\n", found[modality], Model())
    return found


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips of the length that each encoder takes."""
    rng = np.random.default_rng(0)
    arrays = {
        "video": rng.integers(0, 256, (3, 8, 40, 56, 3)).astype(np.uint8),
        "audio": rng.integers(-9_000, 9_000, (3, 4_000)).astype(np.int16),
    }
    folder = tmp_path_factory.mktemp("clips")
    for modality, array in arrays.items():
        np.save(folder / f"{modality}.npy", array)
    return arrays, folder


@pytest.fixture(scope="module")
def expected(folders, clips):
    """What the module computes with the code of the checkout."""
    found = {}
    for modality in MODALITIES:
        with torch.no_grad():
            found[modality] = load_module(folders[modality])(
                torch.from_numpy(clips[0][modality])
            ).numpy()
        assert np.abs(found[modality][0] - found[modality][1]).max() > 1e-3
    return found


EACH = """
program, found = sys.argv[1], {}
for modality, arguments in json.loads(sys.argv[2]).items():
    sys.argv[1:] = arguments
    exec(program)
    found[modality] = answer
print(json.dumps(found))
"""


def answers(program, folders, clips, tmp_path):
    """The `answer` of a program about each encoder, one after the other in one process."""
    arguments = {
        modality: [str(folders[modality]), str(clips[1] / f"{modality}.npy"), COLUMN[modality]]
        for modality in MODALITIES
    }
    return run_isolated(EACH, tmp_path, program, json.dumps(arguments))


PYFUNC = """
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
clips = np.load(sys.argv[2])
embeddings = model.predict({sys.argv[3]: list(clips)})
module = model.unwrap_python_model().module
tensor = torch.from_numpy(clips).to(next(module.parameters()).device)
of_module = module(tensor).tolist()
losses = fine_tuned(lambda: module(tensor), module.parameters())
tuned = model.predict({sys.argv[3]: list(clips)})
assert np.abs(tuned - module(tensor).detach().cpu().numpy()).max() < 1e-5
answer = {"embeddings": [embeddings.tolist(), of_module], "losses": losses}
"""

MODULE = """
import glob
sys.path.append(sys.argv[1] + "/code")
name = glob.glob(sys.argv[1] + "/code/xkd_*")[0].rpartition("/")[2]
exec(f"from {name} import load_module")
encoder = load_module()
clips = torch.from_numpy(np.load(sys.argv[2]))
embeddings = encoder(clips)
tokens = encoder.forward_features(clips)
assert torch.allclose(tokens[:, 1:].mean(dim=1), embeddings, atol=1e-6)
losses = fine_tuned(lambda: encoder(clips), encoder.parameters())
assert "mlflow" not in sys.modules and "av" not in sys.modules
answer = {"embeddings": [embeddings.tolist()], "losses": losses}
"""

TRANSFORMERS = """
from transformers import AutoModel, AutoProcessor
encoder = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
inputs = processor(np.load(sys.argv[2]))
embeddings = encoder(**inputs).pooler_output
losses = fine_tuned(lambda: encoder(**inputs).pooler_output, encoder.parameters())
folder = f"tuned-{sys.argv[3]}"
encoder.save_pretrained(folder)
processor.save_pretrained(folder)
tuned = AutoModel.from_pretrained(folder, trust_remote_code=True)
again = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert torch.allclose(tuned(**again(np.load(sys.argv[2]))).pooler_output,
                      encoder(**inputs).pooler_output, atol=1e-6)
assert not torch.allclose(encoder(**inputs).pooler_output, embeddings, atol=1e-3)
answer = {"embeddings": [embeddings.tolist()], "losses": losses}
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(PYFUNC, id="pyfunc"),
        pytest.param(MODULE, id="module"),
        pytest.param(TRANSFORMERS, id="transformers", marks=needs("transformers", extra="hf")),
    ],
)
def test_ways_to_fine_tune_give_the_same_embeddings(program, folders, clips, expected, tmp_path):
    for modality, answer in answers(program, folders, clips, tmp_path).items():
        for embeddings in answer["embeddings"]:
            np.testing.assert_allclose(embeddings, expected[modality], atol=1e-5, err_msg=modality)
        assert answer["losses"][5] < answer["losses"][0], modality


EXPORT = """
import sys
from pathlib import Path
from pipelines.models.encoder_export import export_onnx, export_program
from pipelines.models.encoder_module import load_module
for folder in map(Path, sys.argv[1:]):
    export_program(load_module(folder), folder / "embeddings.pt2")
    export_onnx(load_module(folder), folder / "embeddings.onnx")
"""

EXPORTED = """
import onnxruntime
clips = np.load(sys.argv[2])
program = torch.export.load(sys.argv[1] + "/embeddings.pt2").module()
session = onnxruntime.InferenceSession(sys.argv[1] + "/embeddings.onnx")
ways = [
    lambda some: program(torch.from_numpy(some)).detach().numpy(),
    lambda some: session.run(["embeddings"], {"clips": some})[0],
]
answers = [np.concatenate([way(clips[:1]), way(clips[1:])]).tolist() for way in ways]
assert not any(name.startswith(("xkd_", "mlflow")) for name in sys.modules)
answer = {"embeddings": answers}
"""


@needs("onnx", "onnxscript", "onnxruntime", extra="onnx")
def test_exported_programs_give_the_same_embeddings(folders, clips, expected, tmp_path):
    # In a process whose types are not checked: sizes are symbols while a network is traced.
    subprocess.run(
        [sys.executable, "-c", EXPORT, *map(str, folders.values())],
        cwd=PACKAGES,
        env={**os.environ, "PYTHONPATH": str(PACKAGES)},
        check=True,
        capture_output=True,
    )
    for modality, answer in answers(EXPORTED, folders, clips, tmp_path).items():
        for embeddings in answer["embeddings"]:
            np.testing.assert_allclose(embeddings, expected[modality], atol=1e-4, err_msg=modality)


def test_a_program_of_torch_takes_any_number_of_clips(folders, clips, expected, tmp_path):
    from pipelines.models.encoder_export import export_program

    export_program(load_module(folders["audio"]), tmp_path / "embeddings.pt2")
    program = torch.export.load(tmp_path / "embeddings.pt2").module()
    some = torch.from_numpy(clips[0]["audio"])
    for count in (1, 2, 3):
        found = program(some[:count]).detach().numpy()
        np.testing.assert_allclose(found, expected["audio"][:count], atol=1e-5)


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_weights_and_settings_are_plain_files(folders, modality):
    weights = load_file(folders[modality] / "model.safetensors")
    module = load_module(folders[modality])
    assert weights.keys() == module.state_dict().keys()
    config = json.loads((folders[modality] / "config.json").read_text())
    assert config["modality"] == modality
    assert config["model"]["video"]["num_frames"] == 8
    assert config["clips"]["num_windows"] == 2


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_module_takes_any_dtype_and_floats(folders, clips, expected, modality, dtype):
    module = load_module(folders[modality]).to(dtype)
    array = torch.from_numpy(clips[0][modality])
    atol = 1e-5 if dtype == torch.float64 else 0.05
    np.testing.assert_allclose(module(array).detach(), expected[modality], atol=atol)
    floats = (array.double() / (255.0 if modality == "video" else 32_767.0)).requires_grad_()
    embeddings = module(floats)
    np.testing.assert_allclose(embeddings.detach(), expected[modality], atol=atol)
    embeddings.square().sum().backward()
    assert floats.grad.abs().max() > 0
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize(
    ("modality", "shape", "message"),
    [
        ("video", (1, 7, 32, 32, 3), r"frames must have the shape \(B, 8, H, W, 3\), but have"),
        ("video", (8, 32, 32, 3), r"but have \(8, 32, 32, 3\)"),
        ("audio", (1, 3_999), r"waveforms must have the shape \(B, 4000\), but have \(1, 3999\)"),
    ],
)
def test_clips_of_another_shape_are_refused(folders, modality, shape, message):
    with pytest.raises(ValueError, match=message):
        load_module(folders[modality])(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize("modality", MODALITIES)
def test_arrays_of_numpy_are_named(folders, clips, modality):
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor, not ndarray; torch\.from_numpy"):
        load_module(folders[modality])(clips[0][modality])


def test_frames_of_any_size_are_cut_as_the_service_cuts_them(folders):
    import mlflow

    model = mlflow.pyfunc.load_model(str(folders["video"]))
    rng = np.random.default_rng(1)
    for height, width in ((32, 32), (33, 20), (24, 61), (90, 160)):
        clip = rng.integers(0, 256, (8, height, width, 3)).astype(np.uint8)
        with torch.no_grad():
            found = load_module(folders["video"])(torch.from_numpy(clip[None])).numpy()
        assert found.shape == (1, WIDTH)
        np.testing.assert_allclose(model.predict({"frames": [clip]}), found, atol=1e-5)
