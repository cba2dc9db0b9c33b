"""A registered encoder runs its own code, beside other versions, a checkout, and other packages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.models import Model

from pipelines.paths import PACKAGES
from pipelines.registry.package import package_name, save_package, stage, traveling_files
from tests.helpers.encoders import example_encoder
from tests.helpers.registered_code import copy_code, multiply_answers


def saved(folder, code=PACKAGES):
    encoder, info = example_encoder("audio")
    staged = folder / "staged"
    content = stage(encoder, info, staged, packages=code)
    save_package(staged, info, "# card\n", folder / "model", Model())
    shutil.rmtree(staged)
    return folder / "model", content


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two encoders with the same weights, the second of code that answers twice as much."""
    folder = tmp_path_factory.mktemp("models")
    ours, content = saved(folder / "ours")
    doubled, other_content = saved(
        folder / "doubled", copy_code(folder / "other_checkout", factor=2)
    )
    assert content != other_content
    return ours, doubled


def answers(model):
    return model.predict({"waveform": [np.arange(-8_000, 8_000, dtype=np.int16)]})


def test_two_versions_run_their_own_code_in_a_process_that_has_ours(models):
    ours, doubled = (mlflow.pyfunc.load_model(str(folder)) for folder in models)
    expected = answers(ours)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(answers(doubled), 2 * expected, rtol=1e-6)
    np.testing.assert_allclose(answers(ours), expected, rtol=1e-6)
    assert Path(sys.modules["pipelines.models.encoder_files"].__file__).is_relative_to(PACKAGES)


def test_a_copy_whose_code_was_edited_runs_as_it_was_edited(models, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(models[0], copy)
    (file,) = copy.glob("code/*/pipelines/models/encoder_model.py")
    multiply_answers(file, 3)
    before = mlflow.pyfunc.load_model(str(models[0]))
    edited = mlflow.pyfunc.load_model(str(copy))
    again = mlflow.pyfunc.load_model(str(models[0]))
    expected = answers(before)
    np.testing.assert_allclose(answers(edited), 3 * expected, rtol=1e-6)
    np.testing.assert_allclose(answers(again), expected, rtol=1e-6)
    np.testing.assert_allclose(answers(before), expected, rtol=1e-6)


def test_a_model_stays_whole_when_the_folder_it_was_loaded_from_is_gone(models, tmp_path):
    shutil.copytree(models[0], tmp_path / "first")
    first = mlflow.pyfunc.load_model(str(tmp_path / "first"))
    expected = answers(first)
    shutil.rmtree(tmp_path / "first")
    np.testing.assert_array_equal(answers(first), expected)
    np.testing.assert_array_equal(answers(mlflow.pyfunc.load_model(str(models[0]))), expected)


USER = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder)]
import pipelines, xkd_core
import mlflow, numpy
model = mlflow.pyfunc.load_model(sys.argv[1])
print(model.predict({"waveform": [numpy.ones(8000, numpy.int16)]}).shape)
import pipelines.mine
assert pipelines.clean(1) == pipelines.mine.ONE == xkd_core.ONE == 1
"""


def test_packages_of_a_user_with_our_names_are_left_alone(models, tmp_path):
    for name in ("pipelines", "xkd_core"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("ONE = 1\ndef clean(x): return x\n")
    (tmp_path / "pipelines" / "mine.py").write_text("ONE = 1\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", USER, str(models[0])],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "(1, 24)"


def test_the_package_is_named_after_weights_settings_and_code(models, tmp_path):
    names = {folder.name for model in models for folder in (model / "code").iterdir()}
    assert len(names) == 2
    encoder, info = example_encoder("audio")
    content = stage(encoder, info, tmp_path / "again")
    assert package_name(content) in names
    other, _ = example_encoder("audio", seed=1)
    assert package_name(stage(other, info, tmp_path / "other")) not in names


def test_a_line_of_the_copy_is_a_line_of_the_original(models):
    (code,) = (models[0] / "code").iterdir()
    for file in traveling_files(PACKAGES):
        ours, copied = ((folder / file).read_text() for folder in (PACKAGES, code))
        assert copied.replace(f"{code.name}.", "") == ours


def test_code_that_cannot_travel_is_named_by_file_and_line(tmp_path):
    code = copy_code(tmp_path / "checkout", factor=1)
    file = code / "xkd_core" / "encoders.py"
    num_lines = len(file.read_text().splitlines())
    file.write_text(file.read_text() + "import xkd_core.shapes\n")
    encoder, info = example_encoder("audio")
    message = rf"^xkd_core/encoders\.py, line {num_lines + 1}: `import xkd_core\.shapes` must be"
    with pytest.raises(ValueError, match=message):
        stage(encoder, info, tmp_path / "staged", packages=code)


def test_modules_are_found_through_every_form_of_import(tmp_path):
    for file, text in {
        "pipelines/__init__.py": "",
        "pipelines/models/__init__.py": "",
        "pipelines/models/encoder_model.py": "from pipelines.media import decode\n"
        "def f():\n    from pipelines.late import x\n",
        "pipelines/media/__init__.py": "from pipelines.early import y",
        "pipelines/media/decode.py": "import xkd_core.a.b as b, os\nimport pipelines_of_mine",
        "pipelines/late.py": "x = 1",
        "pipelines/early.py": "y = 1",
        "pipelines/unused.py": "",
        "xkd_core/__init__.py": "",
        "xkd_core/a/__init__.py": "",
        "xkd_core/a/b.py": "from pipelines.late import x",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    found = {str(file) for file in traveling_files(tmp_path)}
    every = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.py")}
    assert found == every - {"pipelines/unused.py"}
