"""State of an earlier run that is damaged, or of another kind, is named in one line."""

import json

import pytest

from pipelines.config.ingest import IngestSettings
from pipelines.dataset.clip_dataset import ClipDataset
from pipelines.embed.plan import check_same_output
from pipelines.errors import UserError
from pipelines.ingest.state import check_same
from pipelines.tracking.run_folder import RunFolder
from tests.helpers.clip_datasets import write_dataset

EMBEDDINGS = {"model": "models:/a/1", "input": "/videos", "dataset_id": None}


@pytest.mark.parametrize("text", ["", "garbage", "[]", "null", '{"config": []}'])
def test_a_damaged_run_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json\) is damaged: .* or delete it"):
        _ = RunFolder(tmp_path).began_with


def state_of(folder, values):
    (folder / ".ingest").mkdir()
    (folder / ".ingest/settings.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("values", [EMBEDDINGS, {}, {"input": "/videos", "settings": []}])
def test_clips_do_not_go_to_embeddings(tmp_path, values):
    state_of(tmp_path, values)
    with pytest.raises(UserError, match="must be empty or a clip dataset, but holds embeddings"):
        check_same(tmp_path, "/videos", IngestSettings())


def test_embeddings_do_not_go_to_clips_of_the_same_input(tmp_path):
    state_of(tmp_path, {"input": "/videos", "settings": {}})
    with pytest.raises(UserError, match="must be empty or hold embeddings, but holds a clip"):
        check_same_output(tmp_path, EMBEDDINGS)


@pytest.mark.parametrize("damage", [{"settings": []}, {"clips": "many"}, {"clips": None}])
def test_a_damaged_manifest_is_named(tmp_path, damage):
    folder = write_dataset(tmp_path / "clips", 1)
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(values | damage))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        ClipDataset.open(folder)
