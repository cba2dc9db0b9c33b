"""A user's mistake is one line on stderr and exit code 2, before any work starts.

One test starts a program; the others call what it calls, which spares them the imports.
"""

from pathlib import Path

import pytest

from tests.helpers.programs import run_here, run_program
from tests.helpers.training import unused_port

SMOKE = "conf/run/smoke.yaml"


def test_every_kind_of_bad_input_is_told_at_once(tmp_path: Path):
    home = tmp_path / "home"
    taken = tmp_path / "file"
    taken.write_text("not a folder")
    port = unused_port()
    done = run_program(
        "run",
        SMOKE,
        f"input={tmp_path}/nowhere",
        f"output={taken}/runs",
        f"tracking.uri=http://127.0.0.1:{port}",
        f"ray.address=127.0.0.1:{port}",
        home=home,
    )
    assert done.code == 2
    for part in (
        "nowhere) ",
        f"{taken} is a file",
        f"tracking.uri (http://127.0.0.1:{port}) does not answer",
        f"ray.address (127.0.0.1:{port}) does not answer",
    ):
        assert part in done.err
    assert "Traceback" not in done.err
    assert not home.exists()


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        ("run", ["conf/run/smok.yaml"], "does not exist; conf/run has eight_gpus.yaml"),
        ("run", [SMOKE, "pretrain.epoch=3"], "did you mean pretrain.epochs?"),
        ("pretrain", ["conf/pretrain/smoke.yaml"], "is no clip dataset: it does not exist"),
        ("sweep", ["conf/sweep/smoke.yaml"], "is no clip dataset: it does not exist"),
        ("evaluate", ["conf/evaluate/smoke.yaml"], "does not exist"),
        ("embed", ["conf/embed/smoke.yaml"], "xkd-video"),
        (
            "import-checkpoint",
            ["README.md", "alias=a"],
            "README.md is truncated, damaged, or not written by torch.save",
        ),
    ],
)
def test_mistake_of_one_job(tmp_path: Path, job: str, arguments: list[str], message: str):
    done = run_here(job, *arguments, home=tmp_path)
    assert done.code == 2, done.err
    assert message in done.err
    assert "Traceback" not in done.err


def test_folder_without_media_is_refused(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("nothing to see")
    done = run_here(
        "ingest", "conf/ingest/smoke.yaml", f"input={tmp_path}/in", home=tmp_path / "home"
    )
    assert done.code == 2
    assert ".txt" in done.err
    assert "Traceback" not in done.err


def test_dry_run_prints_and_writes_nothing(tmp_path: Path):
    home = tmp_path / "home"
    done = run_here("run", SMOKE, "--dry-run", home=home)
    assert done.code == 0, done.err
    assert "learning_rate" in done.out
    assert f"would write  {home}/runs/smoke" in done.out
    assert not home.exists()


def test_help_explains_every_setting(tmp_path: Path):
    done = run_here("pretrain", "--help", home=tmp_path)
    assert done.code == 0
    assert "model.video.tubelet_size (4) Frames covered by one token." in done.out
