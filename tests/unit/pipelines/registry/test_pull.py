"""Pulling a model: one folder, verified; and what was changed is refused by name."""

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipelines.config.base import JobConfig, TrackingSettings
from pipelines.config.published import PublishedSettings
from pipelines.config.pull import PullConfig
from pipelines.errors import UserError
from pipelines.evaluation.intervals import Figure
from pipelines.models.encoder_files import load_encoder
from pipelines.models.encoder_module import load_module
from pipelines.registry.card import model_card
from pipelines.registry.download import registered_encoder
from pipelines.registry.encoder_scores import EncoderScores
from pipelines.registry.encoder_sources import encoder_sources
from pipelines.registry.pull import pull
from pipelines.registry.versions import find_or_make_version, registered_model
from pipelines.tracking.runs import open_run
from pipelines.tracking.server import tracking_uri
from ray_jobs.cli.main import main
from tests.helpers.encoders import example_encoder

CHAMPION = "models:/xkd-audio@champion"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A registry with an audio encoder, and that encoder."""
    home = tmp_path_factory.mktemp("home")
    tracking = TrackingSettings(uri=f"sqlite:///{home}/mlflow.db")
    return tracking, register(tracking)


def register(tracking, seed=0, name="xkd-audio"):
    encoder, info = example_encoder("audio", seed=seed)
    run = open_run(JobConfig(tracking=tracking), "promote", "test")
    client = run.client()
    registered_model(client, name, info)
    card = model_card(name, "champion", info, None)
    version = find_or_make_version(encoder, info, name, card, run)
    client.set_registered_model_alias(name, "champion", version.version)
    return encoder


def settings(tracking, folder, **values):
    return PullConfig(
        **{"model": "xkd-audio@champion", "output": str(folder), "tracking": tracking, **values}
    )


def stored_folder(store):
    client = mlflow.MlflowClient(tracking_uri(store[0]))
    return Path(client.get_model_version_download_uri("xkd-audio", "1"))


@contextmanager
def changed(file: Path, content: bytes | None):
    """Gives a file other content, or removes it, for a while."""
    before = file.read_bytes() if file.exists() else None
    for now in (content, before):
        if now is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(now)
        if now is content:
            yield


def evaluated(tracking, uri=CHAMPION):
    return encoder_sources(
        [uri],
        setting="checkpoint",
        role="teacher",
        published=PublishedSettings(),
        tracking=tracking,
    )


def flipped(file: Path) -> bytes:
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    return bytes(content)


def test_a_pulled_folder_is_the_registered_encoder(store, tmp_path):
    tracking, encoder = store
    folder = tmp_path / "mine" / "audio"
    version = pull(settings(tracking, folder))
    assert version.uri == "models:/xkd-audio/1"
    clips = torch.randint(-9_000, 9_000, (2, 4_000), dtype=torch.int16)
    module = load_module(folder)
    with torch.no_grad():
        embeddings = module(clips)
        assert torch.allclose(encoder.embed(module.view(clips)), embeddings, atol=1e-6)
    model = mlflow.pyfunc.load_model(str(folder))
    predicted = model.predict({"waveform": list(clips.numpy())})
    np.testing.assert_allclose(predicted, embeddings, atol=1e-5)
    assert [path.name for path in folder.parent.iterdir()] == ["audio"]


def test_the_card_has_front_matter_that_hubs_read(store, tmp_path):
    pull(settings(store[0], tmp_path / "audio"))
    card = (tmp_path / "audio" / "README.md").read_text()
    _, matter, text = card.split("---\n", 2)
    values = yaml.safe_load(matter)
    assert values["license"] == "apache-2.0"
    assert {"xkd", "audio"} <= set(values["tags"])
    (code,) = (tmp_path / "audio" / "code").iterdir()
    assert f"from {code.name} import load_module" in text
    client = mlflow.MlflowClient(tracking_uri(store[0]))
    description = client.get_model_version("xkd-audio", "1").description
    assert description.strip().startswith("# xkd-audio")
    assert code.name in description


def test_front_matter_has_the_scores():
    _, info = example_encoder("audio")
    scores = EncoderScores("clips", "run", 4, 40, 0.25, 40, {"linear": Figure(0.75)}, {})
    matter = yaml.safe_load(model_card("a", None, info, scores).split("---\n", 2)[1])
    (result,) = matter["model-index"][0]["results"]
    assert result["dataset"]["name"] == "clips"
    assert result["metrics"][0]["value"] == 0.75
    assert matter["metrics"] == ["accuracy"]
    scores = replace(scores, marks=("fold 1 of 3", "27 of 30 test sources"))
    matter = yaml.safe_load(model_card("a", None, info, scores).split("---\n", 2)[1])
    (result,) = matter["model-index"][0]["results"]
    assert result["dataset"]["name"] == "clips (fold 1 of 3; 27 of 30 test sources)"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "README.md", "MLmodel", "encoder_model.py"]
)
def test_one_flipped_byte_is_refused_by_name(store, tmp_path, name):
    (file,) = stored_folder(store).rglob(name)
    refusal = pytest.raises(
        UserError, match=rf"is refused: its file \S*{name} differs from what was"
    )
    with changed(file, flipped(file)), refusal:
        pull(settings(store[0], tmp_path / "audio"))
    assert not list(tmp_path.iterdir())


def test_files_that_were_added_or_removed_are_refused(store, tmp_path):
    added = stored_folder(store) / "code" / "sitecustomize.py"
    with (
        changed(added, b"raise SystemExit"),
        pytest.raises(UserError, match=r"its file code/sitecustomize\.py is not in what was"),
    ):
        pull(settings(store[0], tmp_path / "audio"))
    with (
        changed(stored_folder(store) / "xkd_code.py", None),
        pytest.raises(UserError, match=r"its file xkd_code\.py is missing from what was"),
    ):
        pull(settings(store[0], tmp_path / "audio"))


def test_a_manifest_that_was_rewritten_is_refused(store, tmp_path):
    file = stored_folder(store) / "xkd_manifest.json"
    values = json.loads(file.read_text())
    values["files"]["config.json"] = "0" * 64
    with (
        changed(file, json.dumps(values).encode()),
        pytest.raises(UserError, match=r"its file xkd_manifest\.json differs from what was"),
    ):
        pull(settings(store[0], tmp_path / "audio"))


def test_bytecode_that_a_load_left_in_the_store_is_not_pulled(store, tmp_path):
    folder = stored_folder(store)
    (folder / "code" / "__pycache__").mkdir(exist_ok=True)
    (folder / "code" / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"evil")
    pull(settings(store[0], tmp_path / "audio"))
    assert not list((tmp_path / "audio").rglob("*.pyc"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "encoder_model.py"])
def test_evaluation_and_training_refuse_one_flipped_byte_by_name(store, tmp_path, name):
    tracking = store[0]
    found = registered_encoder(CHAMPION, tracking)
    (tmp_path / "weights").mkdir()
    folder = found.fetch(tmp_path / "weights", weights=True)
    assert load_encoder(folder)[1].modality == "audio"
    (source,) = evaluated(tracking)
    assert Path(source.path, "model.safetensors").exists()
    (file,) = stored_folder(store).rglob(name)
    (tmp_path / "again").mkdir()
    with changed(file, flipped(file)):
        with pytest.raises(
            UserError, match=rf"its file \S*{name} differs from what was registered"
        ):
            found.fetch(tmp_path / "again", weights=True)
        with pytest.raises(
            UserError, match=rf"its file \S*{name} differs from what was registered"
        ):
            evaluated(tracking)


def test_an_evaluation_reads_a_model_that_mlflow_has_loaded_there(store):
    compiled = stored_folder(store) / "code" / "__pycache__" / "one.cpython-311.pyc"
    compiled.parent.mkdir(exist_ok=True)
    with changed(compiled, b"bytecode"):
        assert evaluated(store[0])
    with (
        changed(stored_folder(store) / "code" / "more.py", b"pass"),
        pytest.raises(UserError, match=r"its file code/more.py is not in what was registered"),
    ):
        evaluated(store[0])


def test_a_folder_that_holds_something_is_left_alone(store, tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "mine").write_text("precious")
    with pytest.raises(UserError, match="must be a new or empty folder, but it holds files"):
        pull(settings(store[0], tmp_path / "audio"))
    assert (tmp_path / "audio" / "mine").read_text() == "precious"


def test_the_command_takes_a_name_and_a_folder(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    uri = f"tracking.uri={store[0].uri}"
    assert main(["pull", "xkd-audio@champion", "taken", uri]) == 0
    assert "from xkd_" in capsys.readouterr().out
    assert (tmp_path / "taken" / "config.json").is_file()
    assert main(["pull", "xkd-audio@nobody", "other", uri]) == 2
    assert "xkd-audio has no alias nobody" in capsys.readouterr().err
    assert main(["pull", "xkd-audio@champion", "taken", uri]) == 2
    assert "must be a new or empty folder" in capsys.readouterr().err
    assert main(["pull", "xkd-audio@champion", uri]) == 2
    assert "output" in capsys.readouterr().err
    assert main(["pull", "xkd-audio@champion", "s3://bucket/folder", uri]) == 2
    assert "output (s3://bucket/folder) must be a path, not a URI" in capsys.readouterr().err
    nowhere = f"tracking.uri=sqlite:///{tmp_path}/nowhere.db"
    assert main(["pull", "xkd-audio@champion", "other", nowhere]) == 2
    assert "nowhere.db: no such file exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert main(["pull"]) == 2
    assert "xkd pull NAME@ALIAS FOLDER" in capsys.readouterr().err


@pytest.fixture
def keys(tmp_path):
    """A private key, its public key, and the public key of somebody else."""
    files = []
    for name in ("mine", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        public.write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        files.append((private, public))
    return files


@pytest.mark.skipif(
    find_spec("model_signing") is None, reason="model-signing not installed: xkd[sign]"
)
def test_a_signed_model_is_accepted_and_others_are_refused(store, keys, tmp_path, monkeypatch):
    (private, public), (_, other) = keys
    tracking = store[0]
    monkeypatch.setenv("XKD_SIGNING_KEY", str(private))
    register(tracking, name="xkd-signed")
    monkeypatch.delenv("XKD_SIGNING_KEY")
    monkeypatch.setenv("XKD_PUBLIC_KEY", str(public))
    pull(settings(tracking, tmp_path / "signed", model="xkd-signed@champion"))
    signed = "models:/xkd-signed@champion"
    assert evaluated(tracking, signed)
    for name, weights in (("settings", False), ("weights", True)):
        (tmp_path / name).mkdir()
        registered_encoder(signed, tracking).fetch(tmp_path / name, weights=weights)
    command = ["-m", "model_signing", "verify", "key", str(tmp_path / "signed")]
    command += ["--signature", str(tmp_path / "signed" / "model.sig"), "--public_key", str(public)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    with pytest.raises(UserError, match="is refused: it is not signed, but XKD_PUBLIC_KEY"):
        pull(settings(tracking, tmp_path / "unsigned"))
    with pytest.raises(UserError, match="is refused: it is not signed, but XKD_PUBLIC_KEY"):
        evaluated(tracking)
    monkeypatch.setenv("XKD_PUBLIC_KEY", str(other))
    with pytest.raises(UserError, match="is refused: its signature does not fit XKD_PUBLIC_KEY"):
        pull(settings(tracking, tmp_path / "other", model="xkd-signed@champion"))
    (tmp_path / "more").mkdir()
    with pytest.raises(UserError, match="is refused: its signature does not fit XKD_PUBLIC_KEY"):
        registered_encoder(signed, tracking).fetch(tmp_path / "more", weights=False)


def test_a_key_that_is_not_there_is_named(store, tmp_path, monkeypatch):
    monkeypatch.setenv("XKD_PUBLIC_KEY", str(tmp_path / "absent.pub"))
    with pytest.raises(UserError, match=r"XKD_PUBLIC_KEY \(.*absent.pub\) must be a PEM file"):
        pull(settings(store[0], tmp_path / "audio"))
