"""The same command continues an ingest, whatever belongs to the job and not to the clips."""

import pytest

from pipelines.config.ingest import IngestConfig
from pipelines.dataset.schema import STATE_FOLDER
from pipelines.ingest.ingest import _write_settings
from pipelines.ingest.state import fixed_settings
from ray_jobs.ingest import plan, settings_of
from tests.helpers.media import write_numbered


@pytest.fixture
def config(tmp_path):
    (tmp_path / "media").mkdir()
    write_numbered(tmp_path / "media" / "clip.mp4", 50)
    return IngestConfig(
        name="mine",
        input=str(tmp_path / "media"),
        output=str(tmp_path / "clips"),
        tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        ray={"object_store_bytes": 80_000_000},
    )


def test_an_ingest_that_was_interrupted_continues_by_the_same_command(tmp_path, config):
    state = tmp_path / "clips" / STATE_FOLDER
    state.mkdir(parents=True)
    _write_settings(state, config.input, fixed_settings(settings_of(config)))
    assert plan(config).mistakes == ()
    (mistake,) = plan(config.model_copy(update={"name": "other", "short_side": 96})).mistakes
    assert "holds another clip dataset: short_side is 128 there and 96 here. Take" in mistake
