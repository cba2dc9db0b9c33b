"""What stands in the way of a job is said in words, whoever runs it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines.config.promote import PromoteConfig
from pipelines.files import write_json
from ray_jobs.promote import plan
from tests.helpers.encoders import example_scores

CHECKS = """
import os
import sys
from pathlib import Path

from pipelines.config.base import TrackingSettings
from pipelines.config.ingest import IngestSettings
from pipelines.embed.plan import check_same_output
from pipelines.ingest.state import check_same
from pipelines.tracking.server import check_tracking
from ray_jobs.cli.checks import check_writable, messages

nobody = 65534
os.setgroups([])
os.setresgid(nobody, nobody, nobody)
os.setresuid(nobody, nobody, nobody)
closed = Path(sys.argv[1])
for path in (closed, closed / "inner"):
    print(*messages(
        lambda: check_writable(str(path)),
        lambda: check_same(path, "/in", IngestSettings()),
        lambda: check_same_output(path, {}),
        lambda: check_tracking(TrackingSettings(uri=f"sqlite:///{path}/mlflow.db")),
    ), sep="\\n")
"""


def test_a_checkpoint_that_is_not_there_is_said_once(tmp_path: Path):
    scores = tmp_path / "scores.json"
    write_json(scores, example_scores(0.5).to_json())
    config = PromoteConfig.model_validate(
        {
            "checkpoint": str(tmp_path / "nowhere"),
            "scores": str(scores),
            "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        }
    )
    assert plan(config).mistakes == (f"checkpoint ({tmp_path}/nowhere) does not exist",)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_not_be_entered_is_named():
    # Not in pytest's own folder, which nobody else may enter either.
    with tempfile.TemporaryDirectory() as closed:
        Path(closed, "inner").mkdir()
        done = subprocess.run(
            [sys.executable, "-c", CHECKS, closed], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"output ({closed}) is not writable",
        f"output ({closed}) cannot be read: Permission denied",
        f"tracking.uri (sqlite:///{closed}/mlflow.db) is not writable",
        f"output ({closed}/inner) is not writable",
        f"tracking.uri (sqlite:///{closed}/inner/mlflow.db) is not writable",
    ]
