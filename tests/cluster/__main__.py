"""Runs jobs on a cluster of machines that share nothing, and disturbs them.

    sudo python -m tests.cluster [results=FILE] [keep=FOLDER] [limit=SECONDS] [STEP ...]

Without steps, those that FILE has no result of yet. A step that is not done after `limit` seconds
fails with the logs of its jobs, and the next begins on a new cluster. Needs root, `unshare`,
`nsenter` and `ip`.
"""

import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.cluster.board import JOB_SECONDS, UNDISTURBED
from tests.cluster.limits import account, limited
from tests.cluster.machines import FOLDER, in_namespaces
from tests.cluster.outcome import Outcome
from tests.cluster.stand import running
from tests.cluster.steps import Steps

NAMES = [name for name in vars(Steps) if not name.startswith("_")]

NUM_WORKERS = 2


def main(arguments: list[str]) -> int:
    """Runs the steps one after the other; returns 1 if one of them failed."""
    options = dict(one.split("=", 1) for one in arguments if "=" in one)
    results_file = Path(options.get("results", "cluster_results.json"))
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    steps = [one for one in arguments if "=" not in one]
    if unknown := [step for step in steps if step not in NAMES]:
        print(f"no step {unknown[0]}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    steps = steps or [name for name in NAMES if not results.get(name, {}).get("passed")]
    limit = float(options.get("limit", JOB_SECONDS))
    with running(Path(os.environ[FOLDER]), NUM_WORKERS) as stand:
        before = results.get(UNDISTURBED, {}).get("outcome")
        board = Steps(stand, Outcome(**before) if before else None)
        for step in steps:
            found = _result(board, step, limit)
            results[step] = found
            results_file.write_text(json.dumps(results, indent=1))
            if "keep" in options:
                stand.keep(Path(options["keep"]))
            if not found["passed"] and step != steps[-1]:
                stand.restart(NUM_WORKERS)
    return 0 if all(results[step]["passed"] for step in steps) else 1


def _result(board: Steps, step: str, limit: float) -> dict[str, Any]:
    """Runs a step; one that fails does not keep the next from saying something."""
    board.stand.submissions.clear()
    begun = time.monotonic()
    told = ""
    try:
        with limited(limit):
            found: dict[str, Any] = {"passed": True, "seen": getattr(board, step)()}
    except Exception as error:
        found = {"passed": False, "seen": f"{type(error).__name__}: {error}"}
        told = account(board.stand, error)
    found["seconds"] = round(time.monotonic() - begun)
    found["load"] = [round(load, 1) for load in os.getloadavg()]
    if step == UNDISTURBED and board.reference is not None:
        found["outcome"] = asdict(board.reference)
    shown = "passed" if found["passed"] else "FAILED"
    text = f"{step}: {shown} after {found['seconds']} s, load {found['load']}: {found['seen']}"
    print(text, told, sep="\n" if told else "", flush=True)
    return found


if __name__ == "__main__":
    if FOLDER in os.environ:
        sys.exit(main(sys.argv[1:]))
    if os.geteuid() != 0 or not shutil.which("unshare"):
        sys.exit("tests.cluster needs root and unshare, to make namespaces")
    sys.exit(in_namespaces(sys.argv[1:]))
